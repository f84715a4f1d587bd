"""From exits, exceptions and evidence to one cause."""
