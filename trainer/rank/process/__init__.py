"""Makes a forked process look like a fresh interpreter."""
