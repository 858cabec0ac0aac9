"""Errors of training that a command tells apart, without the cost of importing TensorFlow."""


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or not a number."""


class StoppedError(RuntimeError):
    """Training was asked to stop, and has saved its state."""
