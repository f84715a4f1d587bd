"""The built-in example: a small byte-level GPT and its training loop."""
