"""What is imported before a rank needs it, and what must not be."""
