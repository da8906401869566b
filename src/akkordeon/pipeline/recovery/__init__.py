"""What gates do while all is well, so that they can be made anew when it is not."""
