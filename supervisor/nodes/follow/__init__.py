"""A node that follows: its groups, and its part of an attempt."""
