"""Optimizers that bear stale gradients better, beside those of PyTorch."""
