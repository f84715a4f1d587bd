"""The memory tier for programs whose loop is a framework's: `supervise.callbacks.huggingface.SuperviseCallback` and the
like. Each module needs its framework, and only that. Without a supervisor they do nothing."""
