"""The memory tier: snapshots in shared memory."""
