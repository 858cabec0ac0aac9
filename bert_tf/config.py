"""The configuration of a BERT model: one frozen dataclass, and the sizes that were released."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from bert_tf.files import read_json, write_text

_logger = logging.getLogger(__name__)

# No encoder comes near these; a file that says more would take all memory before anything fails.
_MOST_LAYERS = 10_000
_MOST_PARAMETERS = 1e11

# The names of activations. Inside this package "gelu" alone is never used: the original code means
# the tanh form by it (since bee6030, 2019-02-07), transformers the exact form.
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu", "tanh", "linear")
# How the windows of a document become one vector: see `models.heads.WindowPooling`.
WINDOW_POOLINGS = ("mean", "max", "first", "attention")

# What `hidden_act` says in a file, and what it means there. "gelu_tanh" and "gelu_erf" may stand in
# Google's files as well: we write the exact form so, since the original code has no name for it.
_SAME_EVERYWHERE = {"relu": "relu", "tanh": "tanh", "linear": "linear"}
_GOOGLE_ACTIVATIONS = {
    "gelu": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_erf": "gelu_erf",
    **_SAME_EVERYWHERE,
    "": "linear",
}
_HF_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    **_SAME_EVERYWHERE,
}

# The other way; of several names the one that every version of transformers knows.
_TO_HF_ACTIVATION = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", **_SAME_EVERYWHERE}

# Keys of released files by Google (Chinese and multilingual models) that no code of theirs reads.
_GOOGLE_UNUSED_KEYS = {
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type"),
}
# Keys that only transformers writes: one of them makes a file theirs.
_HF_MARKS = {
    *("_name_or_path", "architectures", "dtype", "is_decoder", "model_type"),
    *("position_embedding_type", "torch_dtype", "transformers_version"),
}
# Keys of transformers that change the computation, and the only values that BERT has.
_HF_REQUIRED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# Defaults of transformers' BertConfig for keys of ours that a file of theirs may leave out.
_HF_DEFAULTS = {"vocab_size": 30522, "hidden_act": "gelu"}
# transformers' names for keys of ours.
_HF_RENAMED = {"is_decoder": "left_to_right"}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The sizes and rates of a BERT model, under the keys of `bert_config.json`.

    Reference: `BertConfig` of google-research/bert `modeling.py`; arXiv 1810.04805, section 3.

    Raises:
        ValueError: a value has the wrong type or is out of its range.
    """

    vocab_size: int  # Rows of the word embeddings; no default, it must equal the vocabulary.
    hidden_size: int = 768  # Width of the encoder; BASE's.
    num_hidden_layers: int = 12  # Transformer layers; BASE's.
    num_attention_heads: int = 12  # Must divide hidden_size; 64 wide each in all released models.
    intermediate_size: int = 3072  # Width of the feed-forward layer; 4 * hidden_size in the paper.
    hidden_act: str = "gelu_tanh"  # One of ACTIVATIONS; the form of the original's current code.
    hidden_dropout_prob: float = 0.1  # On embeddings and on what joins the residual; the paper's.
    attention_probs_dropout_prob: float = 0.1  # On attention probabilities; the paper's.
    max_position_embeddings: int = 512  # Longest sequence; any size, the paper's is 512.
    # The original's code says 16, but every released file says 2: next sentence prediction knows
    # two segments, and a default must not give a model no released weights fit.
    type_vocab_size: int = 2
    initializer_range: float = 0.02  # Deviation of the normal that is cut off at twice this.
    layer_norm_eps: float = 1e-12  # The original's, from tf.contrib.layers.layer_norm.
    left_to_right: bool = False  # Causal mask: the paper's LTR ablation (section 5.1).
    bilstm: bool = False  # Heads read a BiLSTM over the encoder: the paper's "+ BiLSTM" (5.1).
    # How a classifier makes one vector of the windows of a document: one of WINDOW_POOLINGS. None
    # where its texts are one sequence each. No other head reads it.
    window_pooling: str | None = None
    # Whether the pre-training model has the NSP head. Without it nothing trains the pooler.
    next_sentence_prediction: bool = True
    # Keys of the file this was read from that mean nothing to the model: kept to be shown.
    ignored_keys: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
            if field.type == "bool" and type(value) is not bool:
                raise ValueError(f"{name} must be true or false, got {value!r}")
            if field.type == "float":
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if name.endswith("_prob") and not (is_number and 0 <= value < 1):
                    raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
                if not name.endswith("_prob") and not (
                    is_number and 0 < value <= sys.float_info.max
                ):
                    raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r} "
                "('gelu' alone is the tanh form in Google's files and the exact one in those of "
                "transformers: name which)"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} "
                f"and {self.num_attention_heads}"
            )
        if self.window_pooling not in (None, *WINDOW_POOLINGS):
            raise ValueError(
                f"window_pooling must be one of {', '.join(WINDOW_POOLINGS)}, got "
                f"{self.window_pooling!r}"
            )
        if self.bilstm and self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even for bilstm, got {self.hidden_size}")

    def check_size(self) -> None:
        """Refuse sizes that are no model's, before one is made of them.

        A configuration alone may have them: beside weights, what these are tells more.

        Raises:
            ValueError: no encoder is as large.
        """
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ValueError(
                f"num_hidden_layers must be at most {_MOST_LAYERS:,}, got {self.num_hidden_layers}"
            )
        width = self.hidden_size
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        matrices = {
            "hidden_size": 4 * width * width * self.num_hidden_layers,
            "intermediate_size": 2 * width * self.intermediate_size * self.num_hidden_layers,
            "vocab_size, max_position_embeddings and type_vocab_size": width * rows,
        }
        largest = max(matrices, key=lambda name: matrices[name])
        if sum(matrices.values()) > _MOST_PARAMETERS:
            raise ValueError(
                f"the configuration is of {sum(matrices.values()):.1e} parameters; expected at "
                f"most {_MOST_PARAMETERS:.0e}; the most are of {largest}"
            )

    @classmethod
    def from_size(cls, size: str, *, vocab_size: int, **overrides: Any) -> BertConfig:
        """Make the configuration of a released size.

        Args:
            size: a key of SIZES, as "mini" or "4/256" (layers/width).
            vocab_size: rows of the word embeddings.
            **overrides: any other field.

        Raises:
            ValueError: the size is not in SIZES, or a field is wrong.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        row = dataclasses.asdict(SIZES[size])
        del row["parameters"]
        return cls.from_dict({"vocab_size": vocab_size, **row, **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BertConfig:
        """Make a configuration from the field names and values of this class (see `to_dict`).

        Raises:
            ValueError: a key is unknown, vocab_size is missing or a value is wrong.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - fields)
        if unknown:
            names = ", ".join(key if key.isprintable() else repr(key) for key in unknown)
            raise ValueError(
                f"unknown configuration keys: {names}; known are {', '.join(sorted(fields))}"
            )
        if "vocab_size" not in values:
            raise ValueError("the configuration lacks vocab_size")
        values = dict(values)
        values["ignored_keys"] = tuple(values.get("ignored_keys", ()))
        return cls(**values)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike, *, style: str | None = None) -> BertConfig:
        """Read Google's `bert_config.json` or the `config.json` of transformers.

        `hidden_act` "gelu" is the tanh form in the former and the exact form in the latter. Keys
        without meaning for the model are logged and kept in `ignored_keys`: in Google's files its
        unused settings of the pooler, in transformers' any.

        Args:
            path: the file.
            style: "google" or "hf"; None (default) for what its keys show.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a JSON object, a key of a Google file is unknown, or a value is wrong.
        """
        path = os.fspath(path)
        try:
            values = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path}: not a JSON file: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
        if style not in (None, "google", "hf"):
            raise ValueError(f"style must be 'google', 'hf' or None, got {style!r}")
        if style is None:
            style = "hf" if _HF_MARKS & set(values) else "google"
        try:
            config = cls.from_dict(_READERS[style](values))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if config.ignored_keys:
            _logger.debug("%s: ignored keys: %s", path, ", ".join(config.ignored_keys))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return every field under its name, without `ignored_keys`, as plain JSON values.

        `window_pooling` is there only if it is not None: what earlier versions stored stays equal.
        """
        values = dataclasses.asdict(self)
        del values["ignored_keys"]
        if self.window_pooling is None:
            del values["window_pooling"]
        return values

    def to_json_string(self) -> str:
        """Return the text of a `bert_config.json`: Google's keys, sorted, read back identically.

        The tanh form of gelu is written "gelu", as the original reads it. Keys that the original
        lacks are written only where they differ from their defaults.
        """
        values = self.to_dict()
        if self.hidden_act == "gelu_tanh":
            values["hidden_act"] = "gelu"
        for name, default in _OWN_KEYS.items():
            if name in values and values[name] == default:
                del values[name]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_hf_dict(self) -> dict[str, Any]:
        """Return the configuration under the keys and names of transformers.

        `from_json_file` reads them back identically, but for `next_sentence_prediction`, which
        transformers tells by the class of the model.
        """
        values = self.to_dict()
        del values["next_sentence_prediction"]
        values["hidden_act"] = _TO_HF_ACTIVATION[self.hidden_act]
        for name, key in ((key_here, key) for key, key_here in _HF_RENAMED.items()):
            values[key] = values.pop(name)
        return {**values, **_HF_REQUIRED, "pad_token_id": 0}

    def to_json_file(self, path: str | os.PathLike) -> None:
        """Write `to_json_string` to a file."""
        write_text(path, self.to_json_string())


_FIELDS = {field.name: field for field in dataclasses.fields(BertConfig)}
# Fields that the original's configuration does not have, with their defaults.
_OWN_KEYS = {
    name: _FIELDS[name].default
    for name in (
        *("layer_norm_eps", "left_to_right", "bilstm", "window_pooling"),
        "next_sentence_prediction",
    )
}


def _activation(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Translate what a file calls its activation."""
    name = values.get("hidden_act", "gelu")
    if name is None:
        name = ""  # The original takes null as no activation.
    if not isinstance(name, str) or name.lower() not in names:
        raise ValueError(f"hidden_act must be one of {', '.join(names)}, got {name!r}")
    return names[name.lower()]


def _read_google(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys of Google's `bert_config.json`."""
    if "type_vocab_size" not in values:
        raise ValueError(
            "type_vocab_size is missing: the original code would take 16, every released model "
            "has 2; write the one that is meant into the file"
        )
    ignored = _GOOGLE_UNUSED_KEYS & set(values)
    result = {key: value for key, value in values.items() if key not in ignored}
    result["hidden_act"] = _activation(values, _GOOGLE_ACTIVATIONS)
    result["ignored_keys"] = tuple(sorted(ignored))
    return result


def _read_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys of the `config.json` of transformers."""
    values = {**_HF_DEFAULTS, **values}
    for key, expected in _HF_REQUIRED.items():
        # Where tie_word_embeddings is false, `load_checkpoint` compares the two matrices.
        if key in values and values[key] != expected and key != "tie_word_embeddings":
            raise ValueError(f"{key} must be {expected!r} for BERT, got {values[key]!r}")
    result = {}
    ignored = []
    for key, value in values.items():
        key_here = _HF_RENAMED.get(key, key)
        if key_here in _FIELDS and key != "ignored_keys":
            result[key_here] = value
        elif key not in _HF_REQUIRED:
            ignored.append(key)
    result["hidden_act"] = _activation(values, _HF_ACTIVATIONS)
    result["ignored_keys"] = tuple(sorted(ignored))
    return result


_READERS = {"google": _read_google, "hf": _read_hf}


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a released model, and its exact number of parameters.

    They are of the encoder with its pooler, 30,522 pieces, 512 positions and 2 segments.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    parameters: int


def _size(num_hidden_layers: int, hidden_size: int, parameters: int) -> Size:
    """Make a row: heads are 64 wide and the feed-forward layer is four times the width in all."""
    return Size(num_hidden_layers, hidden_size, hidden_size // 64, hidden_size * 4, parameters)


# Parameters of the 24 small models (arXiv 1908.08962, and the table in the README of
# google-research/bert): a row for each number of layers, a column for each width.
_WIDTHS = (128, 256, 512, 768)
_PARAMETERS = {
    2: (4_385_920, 9_591_040, 22_458_880, 38_603_520),
    4: (4_782_464, 11_170_560, 28_763_648, 52_779_264),
    6: (5_179_008, 12_750_080, 35_068_416, 66_955_008),
    8: (5_575_552, 14_329_600, 41_373_184, 81_130_752),
    10: (5_972_096, 15_909_120, 47_677_952, 95_306_496),
    12: (6_368_640, 17_488_640, 53_982_720, 109_482_240),
}
SIZES: dict[str, Size] = {
    f"{layers}/{width}": _size(layers, width, parameters)
    for layers, row in _PARAMETERS.items()
    for width, parameters in zip(_WIDTHS, row, strict=True)
}
# BASE, which is 12/768, and LARGE: arXiv 1810.04805, section 3.
SIZES["24/1024"] = _size(24, 1024, 335_141_888)
SIZES |= {
    "tiny": SIZES["2/128"],
    "mini": SIZES["4/256"],
    "small": SIZES["4/512"],
    "medium": SIZES["8/512"],
    "base": SIZES["12/768"],
    "large": SIZES["24/1024"],
}

BASE = BertConfig.from_size("base", vocab_size=30522)
LARGE = BertConfig.from_size("large", vocab_size=30522)
