"""The loop of a run: it looks, lets the core decide, carries out the actions, and tells the events."""
