"""What gates measure of their stale gradients, where they are told to."""
