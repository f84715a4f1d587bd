"""The commands of `supervise`, one module each, with its click command in `command`. It is imported when it is
called."""
