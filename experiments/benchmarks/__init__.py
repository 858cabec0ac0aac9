"""Measurements: this package beside others, each in a process of its own."""
