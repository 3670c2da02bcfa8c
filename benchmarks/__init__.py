"""Measurements that others can repeat: each `python -m benchmarks.<name>` prints one JSON object as its last line."""
