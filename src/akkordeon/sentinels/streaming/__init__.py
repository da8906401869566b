"""Sentinels that learn from streams: each example is predicted before it is learned from."""
