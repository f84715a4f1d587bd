"""What the machine gives to a run beside its folder: shared memory and memory groups."""
