"""The machine of a run: shared memory, memory groups, and /proc."""
