"""Processes: found, signalled, reaped, verified gone, and described by the kernel."""
