"""Trackers of programs (TensorBoard, Lightning's loggers) continue after a restart: one curve, with each step once."""
