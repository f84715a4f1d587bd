"""The facts that the events of a run tell: its story, and the use of its time."""
