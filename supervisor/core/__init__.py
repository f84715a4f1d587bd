"""The part that decides. Pure: no clock, pid, path, logger or I/O. Time comes in as data, actions go out as data."""
