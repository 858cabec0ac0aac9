"""What a task is, its metrics, its windows and answers, without TensorFlow."""
