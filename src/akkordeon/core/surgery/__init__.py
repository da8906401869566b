"""What a running row is told when it is changed: messages and records."""
