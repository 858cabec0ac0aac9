"""Weights of 8 bits for ONNX files, and which products of matrices stay in float32."""

import logging
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from bert_tf.serving.library_messages import less_of

# Inputs of a product that are divided into 255 steps over a range of 60 times their root mean
# square lose all that is smaller than an eighth of that. Trained models have some: of a classifier
# from all-MiniLM-L6-v2 three of 39, the second products of the first layers' feed-forward networks
# (67 to 90, all others below 60), which make half of what int8 changes.
_FAR = 60.0


def quantize(file: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> list[str]:
    """Round the weights of a file's matrix products and tables to 8 bits, in place.

    The other factor is rounded anew in each call, with one scale for the whole of it. Products
    where that factor has a few values far beyond the rest stay as they are.

    Args:
        file: the ONNX file.
        inputs: of the model, to see what its products get.

    Returns:
        The names of the products that stay in float32.
    """
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]

    whole = os.fspath(file)
    kept = [name for name, ratio in ranges(file, inputs).items() if ratio > _FAR]
    with less_of(None, logging.ERROR):  # it asks for a step that only merges what is merged already
        quantization.quantize_dynamic(
            whole,
            whole,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of 8 overflow on processors without VNNI
            nodes_to_exclude=kept,
        )
    return kept


def ranges(file: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return how far the first factors of products with weights range, in root mean squares.

    Args:
        file: the ONNX file.
        inputs: of the model.

    Returns:
        name of a product -> largest minus smallest value, over the root mean square of all.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    model = onnx.load(os.fspath(file))
    given = {value.name for value in model.graph.input}
    weights = {value.name for value in model.graph.initializer}
    products = {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in weights
        and node.input[0] not in given | weights
    }
    names = sorted(set(products.values()))
    float32 = onnx.TensorProto.FLOAT
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, float32, None) for n in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = {}
    for name, values in zip(names, session.run(names, dict(inputs)), strict=True):
        size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
        found[name] = float(np.ptp(values)) / size if size else 0.0
    return {product: found[factor] for product, factor in products.items()}
