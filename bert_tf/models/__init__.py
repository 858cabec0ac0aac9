"""The model: pure functions, layers, the encoder, heads, and a functional model a task."""
