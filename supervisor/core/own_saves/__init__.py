"""The saves of a program that makes its own: what the ranks tell of them, which are whole, and what is gone on from."""
