"""What of a script is seen without a line of its own: its steps, its imports, its processes."""
