"""Tasks: what is trained, by name or from a file of the user's."""
