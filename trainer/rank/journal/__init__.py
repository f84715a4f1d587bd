"""What a script saves and loads by itself, and from which step it goes on."""
