"""Fine-tuning runs: the initial model, the data, training, results."""
