"""Records: one schema that writers and readers share, and TFRecord files, without TensorFlow."""
