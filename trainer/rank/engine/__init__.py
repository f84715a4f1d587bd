"""torchrun as the engine of one group: how its launcher and ranks are made, and where they meet."""
