"""What a run has learned: results with intervals, modality ablation, and the report that shows them."""
