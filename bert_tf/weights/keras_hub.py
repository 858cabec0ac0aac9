"""Models written as KerasHub presets."""

from __future__ import annotations

import logging
import os
import pathlib
import tempfile
from typing import Any

import keras

from bert_tf.config import BertConfig
from bert_tf.files import local_path
from bert_tf.models.variables import bert_layer, config_of, to_numpy, weights_by_name
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.layouts import KERAS_HUB
from bert_tf.weights.locate import KERAS_HUB_WEIGHTS
from bert_tf.weights.model_weights import weights_to_write
from bert_tf.weights.tokenizers import pieces_in_order

_log = logging.getLogger(__name__)


# === KerasHub ===


def check_keras_hub(config: BertConfig) -> None:
    """Raise ValueError if KerasHub's encoder does not compute what one of `config` does."""
    fixed = {"hidden_act": "gelu_tanh", "layer_norm_eps": 1e-12, "left_to_right": False}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}: KerasHub's BertBackbone always has {value!r}, this model has "
                f"{getattr(config, name)!r}; load it with {name}={value!r} to convert it all the "
                "same, which changes its outputs"
            )


def new_backbone(config: BertConfig, **arguments: Any) -> Any:
    """Make a `keras_hub.models.BertBackbone` of these sizes, with weights of its own."""
    import keras_hub

    return keras_hub.models.BertBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        intermediate_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        max_sequence_length=config.max_position_embeddings,
        num_segments=config.type_vocab_size,
        **arguments,
    )


def to_keras_hub(model: keras.Model) -> Any:
    """Make a KerasHub BertBackbone of the encoder of a model.

    Args:
        model: a model of this package. Its heads have no place there, and of its two dropout rates
            only `hidden_dropout_prob`.

    Returns:
        `keras_hub.models.BertBackbone`, float32.

    Raises:
        ValueError: KerasHub's encoder does not compute what this one computes.
    """
    config = config_of(model)
    check_keras_hub(config)
    if not bert_layer(model).train_pooler:
        _log.warning("nothing has trained the pooler of this model: KerasHub's has its values")
    if config.attention_probs_dropout_prob != config.hidden_dropout_prob:
        _log.warning(
            "KerasHub has one rate of dropout: %s is kept, attention_probs_dropout_prob %s is not",
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )
    backbone = new_backbone(config, dtype="float32")
    layout, targets = KERAS_HUB, weights_by_name(backbone)
    for path, weight in weights_to_write(model).items():
        name = layout.theirs(path)
        if name is not None:
            array = layout.to_theirs(path, to_numpy(weight), config)
            targets.pop(name).assign(array)
    if targets:
        raise ValueError(f"KerasHub's BertBackbone has weights of no counterpart: {list(targets)}")
    return backbone


def save_keras_hub(
    directory: str | os.PathLike, model: keras.Model, tokenizer: FullTokenizer | None = None
) -> tuple[str, ...]:
    """Write a preset that `keras_hub.models.BertBackbone.from_preset` reads.

    Args:
        directory: made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer, written as KerasHub's BertTokenizer.

    Returns:
        Names of weights, those of heads, that were not written.

    Raises:
        OSError: a file cannot be written.
        ValueError: see `to_keras_hub`.
    """
    backbone = to_keras_hub(model)
    folder = local_path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp") as temporary:
        if tokenizer is not None:
            import keras_hub

            keras_hub.models.BertTokenizer(
                vocabulary=pieces_in_order(tokenizer),
                lowercase=tokenizer.do_lower_case,
                strip_accents=tokenizer.strip_accents,
            ).save_to_preset(temporary)
        backbone.save_to_preset(temporary)
        written = [path for path in pathlib.Path(temporary).rglob("*") if path.is_file()]
        (folder / KERAS_HUB_WEIGHTS).unlink(missing_ok=True)
        for path in sorted(written, key=lambda path: path.name == KERAS_HUB_WEIGHTS):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return tuple(n for n in weights_by_name(model) if KERAS_HUB.theirs(n) is None)
