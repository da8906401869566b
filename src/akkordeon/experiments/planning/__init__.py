"""Finds how to lay a model out on machines: by costs measured here, and dry runs in the simulator."""
