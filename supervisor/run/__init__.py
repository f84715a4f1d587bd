"""A run on disk, written and read by the supervisor."""
