"""Where a run's folder is, whose it is, and who holds it."""
