"""Frameworks whose own call is handed the checkpoint, by a hook in the ranks: the command line stays as it is."""
