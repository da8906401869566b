"""What forwards and backwards run under: autograd, autocast, the generator of the process."""
