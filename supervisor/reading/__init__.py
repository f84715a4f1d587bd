"""Reading a run: its events and logs, followed over restarts, filtered, and put into words."""
