"""What notebooks and reports show of our objects."""
