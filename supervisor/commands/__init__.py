"""One module a command of `supervise`, each with its click command in `command`; imported when it is called."""
