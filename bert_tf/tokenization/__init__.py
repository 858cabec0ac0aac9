"""Strings to word pieces and back, in Python and in the TensorFlow graph."""
