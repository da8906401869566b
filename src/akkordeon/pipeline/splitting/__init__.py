"""Any module as a row of gates: each runs the module's own forward, with what is not its part left out."""
