"""Pages of HTML about runs: each is one file, needs no network, and may be given to anybody."""
