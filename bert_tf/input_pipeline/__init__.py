"""Records to batches: tf.data pipelines, what is checked before training, dynamic masks."""
