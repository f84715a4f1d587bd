"""Tells programs of each framework to resume from their saves: one small module per framework, and one protocol.

protocol.py defines an adapter, kit.py tries one, choice.py picks one. Nothing here reads a clock, a file or a process,
and nothing imports a framework: facts about a program come in as a value, and its orders go out as a value. The part of
an adapter that runs in a rank gets the framework's own module after the program has imported it.
"""
