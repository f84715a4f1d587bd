"""Processes: found, signalled, killed and reaped, and described by the kernel."""
