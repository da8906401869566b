"""Sources without an end, which a stream is read from."""
