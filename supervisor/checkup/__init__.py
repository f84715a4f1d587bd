"""The checks of `supervise doctor`: what on this machine would harm a run."""
