"""Python programs that a rank starts load this folder's sitecustomize first: the folder is on their PYTHONPATH."""
