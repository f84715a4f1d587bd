"""The folder of a run: its place, its owner, and its holder."""
