"""Scripts that train, evaluate, export and benchmark BERT."""

import os

# Read when TensorFlow is imported, which every command does after this package.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # keras_hub and transformers ask a server otherwise
