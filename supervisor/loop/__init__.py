"""The loop of a run: it looks, lets the core decide, does what it says, and tells what happened."""
