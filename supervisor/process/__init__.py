"""Processes and what the kernel says of them: found, signalled, reaped, verified gone."""
