"""Records of runs: written while a session runs, read back, and replayed."""
