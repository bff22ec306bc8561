"""How bytes move: accept a connection, learn whose it is, ask for a verdict, and carry it out.

`Relay` (in `listener`) is all that the composition root needs.
"""
