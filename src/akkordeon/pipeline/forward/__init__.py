"""How a gate runs its module, beside simply calling it."""
