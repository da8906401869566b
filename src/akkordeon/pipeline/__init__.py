"""A row of gates: the stages of a network, each with its own optimizer."""
