"""Worker processes, their progress, and the lock on their folder."""
