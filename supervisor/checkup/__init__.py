"""The checks of `supervise doctor`: things on this machine that would harm a run."""
