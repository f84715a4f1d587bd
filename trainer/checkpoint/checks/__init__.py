"""What is looked at while training goes on: whether the state can be saved, and whether something is left out of it."""
