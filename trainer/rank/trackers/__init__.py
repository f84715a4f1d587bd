"""Trackers of programs (TensorBoard, Lightning's loggers, MLflow) go on after a restart: one curve, each step once."""
