"""Names of result files that commands write and reports read."""

SEEDS_NAME = "seeds.json"  # what the seeds of a fine-tuning came to
