"""The files of a checkpoint: the plan (which rank writes what), safetensors, the manifest. Needs no torch."""
