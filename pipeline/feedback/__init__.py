"""Who prefers which completion: raters and their judgements."""
