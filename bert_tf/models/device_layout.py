"""How the variables of a model lie on a mesh of devices, for Keras' `ModelParallel` on JAX."""

from typing import Any

import keras

from bert_tf.config import BertConfig

MODEL_AXIS = "model"  # of a mesh, over whose devices a layer is split

# Path of a variable within a layer of the encoder -> the axes of the mesh that its dimensions are
# split over. Heads and the intermediate units are independent of each other, so a layer sums over
# devices twice in each pass: after the attention's output projection, and after the layer's.
_SPLIT = {
    "attention/self/(query|key|value)/kernel": (None, MODEL_AXIS),
    "attention/self/(query|key|value)/bias": (MODEL_AXIS,),
    "attention/output/dense/kernel": (MODEL_AXIS, None),
    "intermediate/dense/kernel": (None, MODEL_AXIS),
    "intermediate/dense/bias": (MODEL_AXIS,),
    "output/dense/kernel": (MODEL_AXIS, None),
}


def layout_map(config: BertConfig, device_mesh: Any) -> Any:
    """Split attention heads and intermediate units over the axis "model" of a mesh.

    All other variables, embeddings among them, are whole on each device; so are the inputs along
    this axis. An optimizer made afterwards keeps its moments where their variables are.

        mesh = keras.distribution.DeviceMesh((2, 4), ("data", "model"))
        layouts = layout_map(config, mesh)
        keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts))
        model = bert_pretrainer(config)

    Args:
        config: the model's configuration.
        device_mesh: `keras.distribution.DeviceMesh` with an axis "model", behind that of the batch.

    Returns:
        `keras.distribution.LayoutMap`.

    Raises:
        ValueError: Keras' backend is another than JAX, or the mesh does not fit the model.

    Reference: arXiv 1909.08053 (Megatron-LM), section 3.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "layout_map: Keras splits models on its JAX backend alone, which KERAS_BACKEND=jax "
            f"chooses; this is {keras.backend.backend()}"
        )
    axes = tuple(device_mesh.axis_names)
    if MODEL_AXIS not in axes:
        raise ValueError(f"device_mesh: expected an axis {MODEL_AXIS!r}, got {', '.join(axes)}")
    count = device_mesh.shape[axes.index(MODEL_AXIS)]
    for name in ("num_attention_heads", "intermediate_size"):
        if getattr(config, name) % count:
            raise ValueError(
                f"device_mesh: {count} devices along {MODEL_AXIS!r} cannot share the "
                f"{getattr(config, name)} of {name} evenly"
            )
    layouts = keras.distribution.LayoutMap(device_mesh)
    for path, split in _SPLIT.items():
        layouts[f"(.*/)?bert/encoder/layer_[0-9]+/{path}"] = split
    return layouts
