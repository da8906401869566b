"""The laboratory: what rules for stale gradients are worth at exact delays, on one grid of learning rates."""
