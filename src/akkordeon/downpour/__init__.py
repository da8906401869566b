"""Replicas and shards: many rows that train one model."""
