"""Ray actors over plain classes: one role a file, each role a DeepSpeed world of its own."""
