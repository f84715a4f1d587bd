"""One attempt: started, watched, signalled, and explained when it fails."""
