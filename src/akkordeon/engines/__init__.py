"""What carries messages: one engine a file."""
