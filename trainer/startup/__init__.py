"""What the Python programs find first that a rank starts: its folder is on their PYTHONPATH."""
