"""The saves and loads of a script, and the step from which it resumes."""
