"""What ranks and supervisor write down for each other: beats, notes, journals, faults, orders."""
