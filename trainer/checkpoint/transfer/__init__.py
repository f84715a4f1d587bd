"""Checkpoints from and for other programs, and one beside another."""
