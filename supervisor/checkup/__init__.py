"""What doctor looks at: this machine, checked for what would bite a run."""
