"""The paper's tables as grids of runs, and their reports."""
