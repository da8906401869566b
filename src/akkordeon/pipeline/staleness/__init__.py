"""Rules for stale gradients: which weights a backward uses, and what its gradient becomes."""
