"""Weights: what a path holds, every system's names, loading, saving, adapters."""
