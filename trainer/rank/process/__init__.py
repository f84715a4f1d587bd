"""A process that is a fork, made what an interpreter of its own would be."""
