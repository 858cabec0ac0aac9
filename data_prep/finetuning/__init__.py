"""Examples of the fine-tuning tasks from their files, as records."""
