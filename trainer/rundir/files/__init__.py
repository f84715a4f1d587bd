"""The files of a run: written so that a reader finds the old or the new content, and read without trust in the
writer."""
