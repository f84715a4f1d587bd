"""Reads a run: its events and logs. They are followed over restarts, filtered, and put into words."""
