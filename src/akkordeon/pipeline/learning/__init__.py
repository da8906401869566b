"""What a stage learns with, as plain data that can be kept and put back."""
