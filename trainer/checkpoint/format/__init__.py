"""The files of a checkpoint: who writes what, safetensors, the manifest. Needs no torch."""
