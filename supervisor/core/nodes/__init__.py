"""The decisions about several nodes."""
