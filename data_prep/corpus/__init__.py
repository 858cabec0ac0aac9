"""Text files to sentences: extraction, reading, and the vocabulary learned on them."""
