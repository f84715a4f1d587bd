"""What runs inside a worker: checkpoints that cannot be torn, and a trainer that uses them. Importing it loads no torch."""
