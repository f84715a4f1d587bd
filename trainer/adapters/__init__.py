"""How programs of each framework are told to go on from what they have saved: a small module each, and one protocol.

protocol.py says what an adapter is, kit.py tries one, choice.py picks it. Nothing here reads a clock, a file or a
process, and nothing imports a framework: what is known of a program comes in as a value, and what it is to be told goes
out as one. The part of an adapter that runs in a rank gets the framework's own module from whoever has seen it being
imported.
"""
