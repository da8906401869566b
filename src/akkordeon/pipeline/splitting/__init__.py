"""Any module as a row of gates: every gate runs the module's own forward, with what is not its part left out.

walk        the forward once, on an example: its blocks in the order they are called, and who needs whom
cost        seconds of each block
balance     where to cut, so that no gate takes much longer than the others
part        the module of a gate
split       all of it: from a module to the modules of a row
"""
