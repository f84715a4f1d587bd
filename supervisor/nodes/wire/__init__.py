"""The connections between supervisors: frames, greeting, and what a message is."""
