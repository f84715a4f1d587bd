"""The disk tier: checkpoints written, committed, verified, restored, pruned, exported."""
