"""Pre-training runs: what a command asks for, checked, and carried out."""
