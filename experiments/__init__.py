"""Scripts that train, evaluate, export and benchmark BERT."""

import os

# Read when TensorFlow is imported, which every command does after this package.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
