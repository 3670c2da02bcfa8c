"""The built-in rollout engine: decode loop, grouped attention, sampling, stopping."""
