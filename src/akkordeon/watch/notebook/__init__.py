"""What a notebook shows of a session at work."""
