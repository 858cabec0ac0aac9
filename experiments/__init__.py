"""Scripts that train, evaluate, export and benchmark BERT."""
