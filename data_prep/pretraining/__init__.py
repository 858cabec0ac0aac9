"""Text to pre-training records, in stages that any runner calls."""
