"""Conversion of checkpoints between formats, and export of models for serving."""
