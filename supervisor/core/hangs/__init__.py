"""The rules that decide when a silence is a hang, and which rank causes it."""
