"""The flight recorders of torch: what each rank of a group has called."""
