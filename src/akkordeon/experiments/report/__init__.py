"""What a run tells people beside the terminal, while it goes on and afterwards."""
