"""Ranks on several nodes: who keeps whose state, how it gets there and back, what a dead attempt may not do."""
