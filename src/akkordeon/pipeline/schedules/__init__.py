"""Gates whose gradients are as old as a schedule says."""
