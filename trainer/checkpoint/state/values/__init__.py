"""Values of a state that are no plain JSON, as JSON and back."""
