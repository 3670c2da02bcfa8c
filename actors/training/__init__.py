"""Supervised stages on Ray Train."""
