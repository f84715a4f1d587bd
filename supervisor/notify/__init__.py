"""Messages to people, where they asked for them."""
