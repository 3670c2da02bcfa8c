"""The one place that knows DeepSpeed: the engine, its state on disk, weights in transit."""
