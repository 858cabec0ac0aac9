"""Worker processes, their progress, the lock on their folder, and the process of a command."""
