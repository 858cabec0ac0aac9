"""Models from checkpoints of any system that has BERT.

`load_bert` and `load_model` make a model of what lies at a path; `load_checkpoint` fills one that
is there. Every weight must be accounted for on both sides. Writing is in `save`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models import variables
from bert_tf.models.layers import Dropout
from bert_tf.models.task_models import HEADS
from bert_tf.tokenization.vocabulary import vocabulary_doubts
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights import layouts
from bert_tf.weights.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from bert_tf.weights.locate import CONFIG_NAME, HF_CONFIG_NAME, LABELS_NAME, read_config, read_json
from bert_tf.weights.model_weights import kind_of, refuse_quantized, without_initial_values
from bert_tf.weights.tensor_files import TensorSource
from bert_tf.weights.tokenizers import load_tokenizer

_log = logging.getLogger(__name__)

DType = str | keras.DTypePolicy | None

# Tables whose rows may be cut or extended, and the weights that have these rows.
RESIZABLE = {
    "vocab_size": (layouts.WORD_EMBEDDINGS, layouts.HEAD_MARKS["pretraining"]),
    "max_position_embeddings": ("bert/embeddings/position_embeddings",),
    "type_vocab_size": ("bert/embeddings/token_type_embeddings",),
}


# === Filling a model ===


class WeightTransfer(NamedTuple):
    """A weight that was taken over."""

    name: str
    source_name: str
    shape: tuple[int, ...]
    source_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What `load_checkpoint` did.

    Attributes:
        description: of the source.
        layout: name of the source's layout.
        moved: weights that were taken over.
        missing: weights of the model that the source lacks; they keep their values.
        ignored: weights of the source that the model has no place for.
        step: the training step (`global_step`) of a TF1-format checkpoint, or None.
    """

    description: str
    layout: str
    moved: tuple[WeightTransfer, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    step: int | None = None


def load_checkpoint(
    model: keras.Model,
    path: CheckpointLike,
    *,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    resize: Sequence[str] = (),
    heads: bool = True,
) -> Transfer:
    """Fill a model with the weights of a checkpoint, strictly in both directions.

    Optimizer state and a pooler that the outputs do not depend on may lack a counterpart. Nothing
    is assigned unless names and shapes all fit.

    Args:
        model: a model of this package.
        path: see `open_checkpoint`.
        ignore: regular expressions (`re.search`) of names of the checkpoint that need no place.
        allow_missing: those of weights that the checkpoint may lack; they keep their values.
        resize: of "vocab_size", "max_position_embeddings" and "type_vocab_size" those whose rows
            may differ. The first rows are taken; rows that the checkpoint lacks keep their initial
            values, positions continue with the checkpoint's from the first again (as in Longformer,
            arXiv 2004.05150).
        heads: whether to load more than the encoder; off to begin fine-tuning.

    Returns:
        What was moved, missing and ignored.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CorruptCheckpointError: a file is damaged.
        ValueError: names, shapes or tied weights differ (the message holds all differences), or
            the number of attention heads.
    """
    config = variables.config_of(model)
    refuse_quantized(variables.weights_by_name(model))
    checkpoint = open_checkpoint(path, config=config)
    _compare_configurations(config, checkpoint)
    if not heads:
        ignore = (*ignore, checkpoint.layout.heads)
    return _fill(model, checkpoint, ignore, allow_missing, resize, heads=heads)


# Fields that no weight shows, that change what a model computes, and that may be changed to try it.
_SILENT_FIELDS = ("hidden_act", "layer_norm_eps", "left_to_right")


def _compare_configurations(config: BertConfig, checkpoint: Checkpoint) -> None:
    theirs = checkpoint.config
    if checkpoint.located is not None and checkpoint.model is None:
        theirs = read_config(checkpoint.located)
    if theirs is None:
        return
    if config.num_attention_heads != theirs.num_attention_heads:
        raise ValueError(
            f"{checkpoint.description}: was made with num_attention_heads "
            f"{theirs.num_attention_heads}, the model has {config.num_attention_heads}; weights "
            "that were trained with one number mean nothing with another"
        )
    for name in _SILENT_FIELDS:
        if getattr(config, name) != getattr(theirs, name):
            _log.warning(
                "%s: was made with %s %r, the model has %r",
                checkpoint.description,
                name,
                getattr(theirs, name),
                getattr(config, name),
            )


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """The weights of a model beside those of a checkpoint, where all differences are allowed.

    Attributes:
        moved: weights that both have.
        missing: weights of the model that the checkpoint lacks.
        ignored: weights of the checkpoint that the model has no place for.
        resized: names of those moved whose numbers of rows differ.
    """

    moved: tuple[WeightTransfer, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    resized: frozenset[str]


def _fill(
    model: keras.Model,
    checkpoint: Checkpoint,
    ignore: Sequence[str],
    allow_missing: Sequence[str],
    resize: Sequence[str],
    *,
    heads: bool = True,
) -> Transfer:
    _check_resize(resize)
    for argument, patterns in (("ignore", ignore), ("allow_missing", allow_missing)):
        _check_patterns(argument, patterns)
    comparison = _compare_weights(model, checkpoint, ignore, allow_missing, resize, heads)
    if heads:
        _check_tied(model, checkpoint)
    weights, layout, source = variables.weights_by_name(model), checkpoint.layout, checkpoint.source
    by_source = {move.source_name: move for move in comparison.moved}
    source.check(list(by_source))
    for source_name, array in source.read(list(by_source)):
        move = by_source[source_name]
        weight = weights[move.name]
        if move.name in comparison.resized:
            array = _resized(move.name, array, variables.to_numpy(weight))
        tensor = ops.convert_to_tensor(array, dtype="float32")
        if layout.transposed(move.name):
            tensor = ops.transpose(tensor)
        weight.assign(ops.reshape(tensor, move.shape))
    return Transfer(
        description=checkpoint.located.description if checkpoint.located else layout.name,
        layout=layout.name,
        moved=comparison.moved,
        missing=comparison.missing,
        ignored=comparison.ignored,
        step=_global_step(source),
    )


def _check_resize(resize: Sequence[str]) -> None:
    unknown = sorted(set(resize) - set(RESIZABLE))
    if unknown:
        raise ValueError(f"resize: expected any of {', '.join(RESIZABLE)}, got {unknown[0]!r}")


def _check_patterns(argument: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{argument}: {pattern!r} is not a regular expression: {error}"
            ) from error


def _compare_weights(
    model: keras.Model,
    checkpoint: Checkpoint,
    ignore: Sequence[str],
    allow_missing: Sequence[str],
    resize: Sequence[str],
    heads: bool,
) -> _Comparison:
    """Compare names and shapes, and refuse all differences at once that are not allowed."""
    bert, layout, names = variables.bert_layer(model), checkpoint.layout, checkpoint.canonical()
    if not bert.train_pooler:
        allow_missing = (*allow_missing, layouts.POOLER_PATTERN)
    may_resize = {weight for key in resize for weight in RESIZABLE[key]}
    moved: list[WeightTransfer] = []
    missing, absent, shapes, resized = [], [], [], set()
    for name, weight in variables.weights_by_name(model).items():
        if not heads and re.search(variables.HEADS_PATTERN, name):
            missing.append(name)
            continue
        theirs = layout.theirs(name)
        if theirs is None or theirs not in names:
            (missing if _matches(name, allow_missing) else absent).append(name)
            continue
        source_name = names.pop(theirs)
        source_shape, shape = checkpoint.source.shapes[source_name], tuple(weight.shape)
        moved.append(WeightTransfer(name, source_name, shape, source_shape))
        if source_shape == layout.shape(name, shape, bert.config):
            continue
        # Tables lie the same way everywhere: rows first.
        if name in may_resize and source_shape[1:] == shape[1:] and source_shape[0] > 0:
            resized.add(name)
        else:
            shapes.append(_shape_difference(name, shape, source_shape, layout, bert.config))
    ignored = [a for n, a in names.items() if _matches(n, ignore) or _matches(a, ignore)]
    extra = [actual for actual in names.values() if actual not in ignored]
    _refuse(checkpoint, absent, extra, shapes)
    return _Comparison(tuple(moved), tuple(missing), tuple(ignored), frozenset(resized))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _refuse(
    checkpoint: Checkpoint, absent: Sequence[str], extra: Sequence[str], shapes: Sequence[str]
) -> None:
    problems = []
    if absent:
        problems.append(
            "in the model but not in the checkpoint (allow_missing= lets them keep their initial "
            f"values): {variables.abbreviate(absent)}"
        )
    if extra:
        problems.append(
            "in the checkpoint but not in the model (ignore= skips them): "
            f"{variables.abbreviate(extra)}"
        )
    if shapes:
        problems.append(f"of another shape: {variables.abbreviate(shapes)}")
    if problems:
        raise ValueError(f"{checkpoint.description}: weights differ; " + "; ".join(problems))


def _shape_difference(
    name: str,
    shape: tuple[int, ...],
    source_shape: tuple[int, ...],
    layout: layouts.Layout,
    config: BertConfig,
) -> str:
    expected = layout.shape(name, shape, config)
    text = f"{name}: model {expected}, checkpoint {source_shape}"
    for key, weights in RESIZABLE.items():
        if name in weights and source_shape[1:] == expected[1:]:
            way = "cut the rest off" if source_shape[0] > expected[0] else "add rows"
            text += (
                f" ({key} differs: load_bert(..., {key}={expected[0]}) and "
                f"load_checkpoint(..., resize=[{key!r}]) {way})"
            )
    return text


def _resized(name: str, array: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Cut an array to the rows of a weight, or extend it; see `load_checkpoint`."""
    array, rows = np.asarray(array), len(initial)
    if name in RESIZABLE["max_position_embeddings"]:
        return array[np.arange(rows) % len(array)]
    return np.concatenate([array[:rows], initial[len(array) :]])


def _check_tied(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Refuse a file of transformers whose projection onto the vocabulary is not the embeddings."""
    if checkpoint.layout is not layouts.HF or not any(
        weight.path == layouts.HEAD_MARKS["pretraining"] for weight in model.weights
    ):
        return
    names = checkpoint.layout.canonical(checkpoint.source.shapes)
    for copy, original in layouts.HF_TIED.items():
        if copy not in names or original not in names:
            continue
        (_, one), (_, other) = checkpoint.source.read([names[copy], names[original]])
        if not np.array_equal(one, other):
            raise ValueError(
                f"{checkpoint.description}: {copy} differs from {original}; in BERT, and in the "
                "models of this package, they are one"
            )


def _global_step(source: TensorSource) -> int | None:
    if source.shapes.get("global_step") != ():
        return None
    ((_, step),) = source.read(["global_step"])
    return int(step)


# === Making a model of a checkpoint ===


class LoadedBert(NamedTuple):
    """What `load_bert` returns."""

    encoder: keras.Model
    config: BertConfig
    tokenizer: FullTokenizer | None


class LoadedModel(NamedTuple):
    """What `load_model` returns.

    Attributes:
        model: a model of `task_models.HEADS`.
        config: its configuration.
        tokenizer: None where no vocabulary lies with the weights.
        kind: key of `task_models.HEADS`.
        labels: names of the labels of a classifier, in order, where they lie with the weights.
        transfer: what was moved, missing and ignored.
        problem_type: of a classifier of transformers, a value of HF_PROBLEM_TYPES; None where its
            configuration leaves open that it tells one label from others.
    """

    model: keras.Model
    config: BertConfig
    tokenizer: FullTokenizer | None
    kind: str
    labels: tuple[str, ...] | None
    transfer: Transfer
    problem_type: str | None = None


def load_bert(
    path: CheckpointLike,
    *,
    hidden_states: bool = False,
    attention_probs: bool = False,
    dtype: DType = None,
    do_lower_case: bool | None = None,
    config: BertConfig | None = None,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    **overrides: Any,
) -> LoadedBert:
    """Load the encoder, its configuration and its tokenizer from any checkpoint.

        encoder, config, tokenizer = bert_tf.load_bert("uncased_L-12_H-768_A-12")

    Heads are left behind. Where the checkpoint has no pooler, or one that nothing has trained, as
    after pre-training without next sentence prediction, the encoder has no "pooled_output".

    Args:
        path: a directory, file or TensorFlow prefix, or the name of a published model, as
            "hf://google-bert/bert-base-uncased" (see `locate`), or a KerasHub BertBackbone.
        hidden_states: whether the encoder outputs the hidden states of all layers.
        attention_probs: whether the encoder outputs the attention probabilities of all layers.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        do_lower_case: casing of the tokenizer; None (default) for what lies with the weights, or
            else whether no piece of the vocabulary has an upper-case letter.
        config: the configuration; None (default) for the one that lies with the weights.
        ignore: as in `load_checkpoint`.
        allow_missing: as in `load_checkpoint`.
        **overrides: fields of BertConfig to change. vocab_size, max_position_embeddings and
            type_vocab_size cut or extend the embeddings as `load_checkpoint(resize=...)` does.

    Returns:
        (encoder, config, tokenizer), the last None where no vocabulary lies with the weights.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no configuration with it.
        CorruptCheckpointError: a file is damaged.
        ValueError: names or shapes do not fit the configuration.
    """
    checkpoint = open_checkpoint(path, config=config)
    config = _configured(checkpoint, config, overrides)
    _check_tables(checkpoint, config, _resizes(overrides))
    has_pooler, layout = _has_pooler(checkpoint, config), checkpoint.layout
    with _initial_values(config, checkpoint, needed=bool(allow_missing) or not has_pooler):
        encoder = HEADS["encoder"].make(
            config,
            hidden_states=hidden_states,
            attention_probs=attention_probs,
            pooled_output=has_pooler,
            dtype=dtype,
        )
    ignore = (*ignore, layout.heads)
    transfer = _fill(encoder, checkpoint, ignore, allow_missing, _resizes(overrides))
    tokenizer = load_tokenizer(checkpoint, do_lower_case)
    if not has_pooler:
        _log.info(
            "%s: has no trained pooler; the encoder gives no pooled output", checkpoint.description
        )
    _warn_of_vocabulary(checkpoint, config, tokenizer)
    if transfer.ignored:
        _log.info(
            "%s: left behind: %s", checkpoint.description, variables.abbreviate(transfer.ignored)
        )
    return LoadedBert(encoder, config, tokenizer)


def load_model(
    path: CheckpointLike,
    *,
    kind: str | None = None,
    dtype: DType = None,
    do_lower_case: bool | None = None,
    config: BertConfig | None = None,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    **overrides: Any,
) -> LoadedModel:
    """Load a model with its head from any checkpoint.

    Args:
        path: as in `load_bert`.
        kind: key of `task_models.HEADS`; None (default) for what the weights say, and for
            transformers the "architectures" of config.json.
        dtype: as in `load_bert`.
        do_lower_case: as in `load_bert`.
        config: as in `load_bert`.
        ignore: as in `load_checkpoint`.
        allow_missing: as in `load_checkpoint`.
        **overrides: as in `load_bert`.

    Returns:
        The model and what belongs to it.

    Raises:
        FileNotFoundError, CorruptCheckpointError: as in `load_bert`.
        ValueError: as in `load_bert`, or the kind cannot be told.
    """
    checkpoint = open_checkpoint(path, config=config)
    config = _configured(checkpoint, config, overrides)
    _check_tables(checkpoint, config, _resizes(overrides))
    if kind is None:
        kind = _kind(checkpoint)
        _refuse_unread_layers(checkpoint)
    elif kind not in HEADS:
        raise ValueError(f"kind: expected one of {', '.join(HEADS)}, got {kind!r}")
    names, layout = checkpoint.canonical(), checkpoint.layout
    has_pooler = _has_pooler(checkpoint, config)
    arguments: dict[str, Any] = {}
    if HEADS[kind].has_dropout and (rate := _head_dropout(checkpoint, config)) is not None:
        arguments["dropout_rate"] = rate
    if HEADS[kind].has_labels:
        bias = names.get(layout.theirs(layouts.HEAD_MARKS[kind]) or "")
        if bias is None:
            raise ValueError(f"{checkpoint.description}: has no weights of a {kind} head")
        shape = checkpoint.source.shapes[bias]
        if len(shape) != 1 or not shape[0]:
            raise ValueError(
                f"{checkpoint.description}: {bias} has shape {shape}; expected one number for "
                "each label"
            )
        arguments["num_labels"] = shape[0]
    if kind == "encoder":
        arguments["pooled_output"] = has_pooler
    if kind == "pretraining":
        has_nsp = layout.theirs(layouts.HEAD_MARKS["next_sentence"]) in names
        config = dataclasses.replace(config, next_sentence_prediction=has_nsp)
    ready = _ready_model(checkpoint, kind, config, dtype)
    if ready is not None:
        model, transfer = ready
    else:
        needed = bool(allow_missing) or not has_pooler
        with _initial_values(config, checkpoint, needed=needed):
            model = HEADS[kind].make(config, dtype=dtype, **arguments)
        transfer = _fill(model, checkpoint, ignore, allow_missing, _resizes(overrides))
    labels = _labels(checkpoint, arguments.get("num_labels"))
    tokenizer = load_tokenizer(checkpoint, do_lower_case)
    _warn_of_vocabulary(checkpoint, config, tokenizer)
    problem_type = None
    if kind == "classification":
        problem_type = _problem_type(checkpoint, arguments["num_labels"])
    return LoadedModel(model, config, tokenizer, kind, labels, transfer, problem_type)


def _has_pooler(checkpoint: Checkpoint, config: BertConfig) -> bool:
    """Tell whether a checkpoint has a pooler that something has trained."""
    names, layout = checkpoint.canonical(), checkpoint.layout
    if not config.next_sentence_prediction:
        return False
    if checkpoint.model is not None and layout is layouts.OURS:
        return variables.bert_layer(checkpoint.model).train_pooler
    if layout is layouts.OURS:  # a .weights.h5 file, which holds a pooler in any case
        kinds = layouts.kinds_of_heads(layout, names) or ["encoder"]
        return not config.bilstm and layouts.HF_ARCHITECTURES[kinds[0]][1]
    return any(layout.theirs(name) in names for name in layouts.POOLER)


def _head_dropout(checkpoint: Checkpoint, config: BertConfig) -> float | None:
    """Return the dropout before the head, where the checkpoint says; see transformers' classes."""
    if checkpoint.layout is layouts.HF:
        rate = _hf_values(checkpoint).get("classifier_dropout")
        return config.hidden_dropout_prob if rate is None else rate
    layers = checkpoint.model.layers if checkpoint.model is not None else ()
    return next((layer.rate for layer in layers if isinstance(layer, Dropout)), None)


def _warn_of_vocabulary(
    checkpoint: Checkpoint, config: BertConfig, tokenizer: FullTokenizer | None
) -> None:
    """Say where the tokenizer may not be the model's."""
    if tokenizer is None or checkpoint.doubts_told:
        return
    checkpoint.doubts_told = True
    size: int | None = config.vocab_size
    if checkpoint.config is not None and checkpoint.config.vocab_size != size:
        # Resized on purpose: only pieces without embeddings are a mistake.
        size = size if max(tokenizer.vocab.values()) >= size else None
    for doubt in vocabulary_doubts(tokenizer.vocab, tokenizer.do_lower_case, size):
        _log.warning("%s: %s", checkpoint.description, doubt)


def _configured(
    checkpoint: Checkpoint, config: BertConfig | None, overrides: Mapping[str, Any]
) -> BertConfig:
    """Return the configuration of a model to be made: the given or the found one, changed."""
    config = config or checkpoint.config
    if config is None:
        raise FileNotFoundError(
            f"{checkpoint.description}: no {CONFIG_NAME} (or {HF_CONFIG_NAME} of transformers) "
            "beside it; give config="
        )
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(BertConfig)})
    if unknown:
        raise TypeError(f"{unknown[0]!r} is neither an argument nor a field of BertConfig")
    return dataclasses.replace(config, **overrides)


def _check_tables(checkpoint: Checkpoint, config: BertConfig, resize: Sequence[str]) -> None:
    """Refuse sizes that the file does not have, before a model that may not fit memory is made."""
    names, layout, shapes = checkpoint.canonical(), checkpoint.layout, checkpoint.source.shapes
    differences = []
    for key, (weight, *_) in RESIZABLE.items():
        shape = shapes.get(names.get(layout.theirs(weight) or "", ""))
        expected = (getattr(config, key), config.hidden_size)
        if shape is not None and key not in resize and shape != expected:
            differences.append(_shape_difference(weight, expected, shape, layout, config))
    name = "bert/encoder/layer_0/intermediate/dense/kernel"
    shape = shapes.get(names.get(layout.theirs(name) or "", ""))
    expected = (config.hidden_size, config.intermediate_size)
    if shape is not None and shape != layout.shape(name, expected, config):
        differences.append(_shape_difference(name, expected, shape, layout, config))
    _refuse(checkpoint, (), (), differences)
    if config.num_hidden_layers > len(shapes):
        raise ValueError(
            f"{checkpoint.description}: num_hidden_layers is {config.num_hidden_layers}, and there "
            f"are {len(shapes)} weights in all"
        )


def _ready_model(
    checkpoint: Checkpoint, kind: str, config: BertConfig, dtype: DType
) -> tuple[keras.Model, Transfer] | None:
    """Return the model that opening a Keras file has made, where it is the one that is wanted."""
    model, layout = checkpoint.model, checkpoint.layout
    if model is None or checkpoint.located is None or layout is not layouts.OURS:
        return None
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    same = kind_of(model)[0] == kind and checkpoint.config == config
    if not same or variables.bert_layer(model).dtype_policy != policy or _others(checkpoint):
        return None
    moved = [
        WeightTransfer(name, name, shape, shape) for name, shape in checkpoint.source.shapes.items()
    ]
    return model, Transfer(checkpoint.located.description, layout.name, tuple(moved), (), ())


def _initial_values(
    config: BertConfig, checkpoint: Checkpoint, *, needed: bool
) -> contextlib.AbstractContextManager[None]:
    """Return the context to make a model in: without initial values where all will be loaded."""
    names = checkpoint.canonical()
    grown = False
    for key, weights in RESIZABLE.items():
        name = names.get(checkpoint.layout.theirs(weights[0]) or "")
        grown |= name is not None and checkpoint.source.shapes[name][:1] < (getattr(config, key),)
    return contextlib.nullcontext() if needed or grown else without_initial_values()


def _resizes(overrides: Mapping[str, Any]) -> list[str]:
    return [key for key in RESIZABLE if key in overrides]


def _kind(checkpoint: Checkpoint) -> str:
    """Tell what head a checkpoint has; see `load_model`."""
    kinds = layouts.kinds_of_heads(checkpoint.layout, checkpoint.canonical())
    if len(kinds) > 1 and checkpoint.layout is layouts.HF:
        # transformers calls three heads "classifier": its class tells them apart.
        classes = _hf_values(checkpoint).get("architectures") or ["(none named)"]
        kinds = [k for k in kinds if layouts.HF_ARCHITECTURES[k][0] in classes] or kinds
        what = f", and the architecture is {classes[0]}"
    else:
        what = ""
    if len(kinds) > 1:
        raise ValueError(
            f"{checkpoint.description}: its head may be {' or '.join(kinds)}{what}; say which "
            "with kind="
        )
    return kinds[0] if kinds else "encoder"


def _refuse_unread_layers(checkpoint: Checkpoint) -> None:
    """Refuse to take a model with other layers than ours for what is known of it."""
    located = checkpoint.located
    if located is not None and located.format == "keras_hub":
        task = pathlib.Path(located.path) / "task.json"
        if task.exists():
            name = str(read_json(task).get("registered_name")).rpartition(">")[2]
            raise ValueError(
                f"{located.path}: a preset of {name}, whose head is not read; kind='encoder' takes "
                "its backbone alone"
            )
    if checkpoint.layout is layouts.OURS and (others := _others(checkpoint)):
        raise ValueError(
            f"{checkpoint.description}: has weights of layers that are not of this package: "
            f"{variables.abbreviate(others)}; keras.models.load_model reads the whole model, kind= "
            "and ignore= a part of it"
        )


def _others(checkpoint: Checkpoint) -> list[str]:
    """Return the weights of a model that belong neither to the encoder nor to a head of ours."""
    ours = re.compile(rf"^bert/|{variables.HEADS_PATTERN}")
    return [name for name in checkpoint.canonical() if not ours.search(name)]


def _hf_values(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return config.json of a checkpoint of transformers, as it is."""
    if checkpoint.layout is not layouts.HF or checkpoint.located is None:
        return {}
    path = pathlib.Path(checkpoint.located.path).parent / HF_CONFIG_NAME
    return read_json(path) if path.exists() else {}


def _problem_type(checkpoint: Checkpoint, num_labels: int) -> str | None:
    """Return what transformers takes a classifier for; see its BertForSequenceClassification."""
    if checkpoint.layout is not layouts.HF:
        return None
    problem_type = _hf_values(checkpoint).get("problem_type")
    if problem_type is None:
        return layouts.HF_PROBLEM_TYPES["regression"] if num_labels == 1 else None
    if problem_type not in layouts.HF_PROBLEM_TYPES.values():
        raise ValueError(
            f"{checkpoint.description}: problem_type: expected one of "
            f"{', '.join(layouts.HF_PROBLEM_TYPES.values())}, got {problem_type!r}"
        )
    return problem_type


def _labels(checkpoint: Checkpoint, num_labels: int | None) -> tuple[str, ...] | None:
    """Return the label names that lie with the weights, if there are that many."""
    if num_labels is None or checkpoint.located is None:
        return None
    names = _hf_values(checkpoint).get("id2label")
    if isinstance(names, dict) and set(names) == {str(i) for i in range(num_labels)}:
        return tuple(str(names[str(i)]) for i in range(num_labels))
    path = pathlib.Path(checkpoint.located.path).parent / LABELS_NAME
    if not path.exists():
        return None
    labels = tuple(path.read_text(encoding="utf-8").splitlines())
    if len(labels) != num_labels:
        raise ValueError(f"{path}: {len(labels)} labels, but the head has {num_labels}")
    return labels
