"""A Checkpointer in a rank of a standby: it warms up, and waits in restore()."""
