"""torchrun as the engine of one group: who makes its launcher and ranks, and where they meet."""
