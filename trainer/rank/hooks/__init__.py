"""The hooks that see a script's steps, imports and processes, without a line in the script."""
