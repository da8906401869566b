"""A running network."""
