"""What the events of a run tell: its story, and where its time went."""
