"""The state of a run as one tree of plain values and tensors."""
