"""The saves of a program that makes its own: the ranks' reports, the whole saves, and the save to resume from."""
