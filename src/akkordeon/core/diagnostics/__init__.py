"""What gates measure of their stale gradients."""
