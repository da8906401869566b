"""What stages refuse and drop."""
