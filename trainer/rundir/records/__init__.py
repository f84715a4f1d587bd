"""Records that ranks and supervisor write for each other: beats, notes, journals, faults, orders."""
