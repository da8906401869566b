"""Tasks, trained and kept."""
