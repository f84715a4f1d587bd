"""The pages of the runs of a folder, live, on 127.0.0.1. Nothing here changes a run."""
