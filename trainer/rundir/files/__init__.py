"""How files of a run are written, so that they are old or new, and read, whoever wrote them."""
