"""The decisions about the standby."""
