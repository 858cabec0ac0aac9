"""Strings in, answers out: served models, SavedModel, TFLite and ONNX files, `Predictor`."""
