"""The parts of benchmarks/gpu.py. Each has measure(part), and runs in a process of its own."""
