"""Prompts from disk to memory: the table's schema, bounded media decoding, reading in order, and the demo data."""
