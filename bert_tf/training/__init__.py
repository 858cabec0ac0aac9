"""Losses, objectives, optimizers, one step, the `Trainer`, exact state, devices."""
