"""The files of a run, as the supervisor writes and reads them."""
