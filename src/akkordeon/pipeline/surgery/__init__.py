"""Changes of gates that are at work."""
