"""A run on disk, as the supervisor writes and reads it."""
