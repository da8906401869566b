"""What sentinels that learn from streams, and their readers, tell each other and whoever watches."""
