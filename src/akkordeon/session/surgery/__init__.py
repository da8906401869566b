"""What users do to the row of gates of a running session."""
