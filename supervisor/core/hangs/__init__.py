"""When a silence is a hang, and whose it is."""
