"""Launches torchrun jobs, watches them, relaunches them with resume. Never imports torch."""
