"""Scripts that train, evaluate, export and benchmark BERT."""

import logging
import os

# Read when TensorFlow is imported, which every command does after this package.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# By which huggingface_hub asks: a line for each request would hide what a command says.
logging.getLogger("httpx").setLevel(logging.WARNING)
