"""Imports made before a rank needs them, and the modules that must not be imported early."""
