"""What other systems call the weights of BERT, and how they lay them out.

Our name of a weight is its `variable.path`, which is google-research/bert's. A `Layout` says for
each of ours the name and the shape it has elsewhere. There is one direction only: reading asks for
the names it expects and what remains is extra, so nothing can be taken for something it is not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from bert_tf.config import BertConfig
from bert_tf.models.variables import HEADS_PATTERN, unique_names

# Our weight that shows a head to be there, for each kind of model (see task_models.HEADS).
HEAD_MARKS = {
    "pretraining": "cls/predictions/output_bias",
    "next_sentence": "cls/seq_relationship/output_bias",
    "classification": "classifier/output_bias",
    "span": "cls/squad/output_bias",
    "token_classification": "token_classification/output_bias",
    "multiple_choice": "multiple_choice/output_bias",
}
WORD_EMBEDDINGS = "bert/embeddings/word_embeddings"
POOLER = ("bert/pooler/dense/kernel", "bert/pooler/dense/bias")
POOLER_PATTERN = r"^bert/pooler/"
# In every TensorFlow 2 checkpoint that names tensors by objects, and in no other.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one system names and shapes its weights.

    Attributes:
        name: what to call it in messages.
        theirs: our name -> the name there, or None where it has no such weight.
        transposed: our name -> whether a matrix lies the other way round there.
        canonical: a name as it stands in a file -> the name `theirs` gives; older files and parts
            of models spell some differently.
        ignored: regular expression over names there; buffers, copies and optimizer state, which
            need no place in a model.
        heads: regular expression over names there; weights outside the encoder.
        split_heads: whether attention kernels keep the head as an axis of its own.
    """

    name: str
    theirs: Callable[[str], str | None]
    transposed: Callable[[str], bool] = lambda path: False
    canonical: Callable[[Iterable[str]], dict[str, str]] = lambda names: {n: n for n in names}
    ignored: str = r"(?!)"
    heads: str = r"(?!)"
    split_heads: bool = False

    def shape(self, path: str, shape: tuple[int, ...], config: BertConfig) -> tuple[int, ...]:
        """Return the shape there of a weight that has `shape` here."""
        if self.transposed(path):
            return shape[::-1]
        if not self.split_heads:
            return shape
        heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        if re.search(r"/self/(query|key|value)/(kernel|bias)$", path):
            return (*shape[:-1], *heads)
        if path.endswith("/attention/output/dense/kernel"):
            return (*heads, shape[-1])
        return shape

    def to_theirs(self, path: str, array: np.ndarray, config: BertConfig) -> np.ndarray:
        """Lay one of our arrays out as there."""
        if self.transposed(path):
            return np.ascontiguousarray(array.T)
        return array.reshape(self.shape(path, array.shape, config))


# === google-research/bert ===

# Its run_classifier.py makes these two variables outside any scope.
_TF1_ROOT = {f"classifier/{name}": name for name in ("output_weights", "output_bias")}

# What a checkpoint of the original holds besides weights, and what ours adds for resuming.
TRAINING_STATE = (
    r"/(adam|lamb)_[mv]$|/(Adam|AdamWeightDecayOptimizer|LAMB)(_1)?$|^beta[12]_power(_\d+)?$"
    r"|^global_step$|^training/|^distillation_\d+/"  # which match layers of a teacher
)

TF1 = Layout(
    name="google-research/bert",
    theirs=lambda path: _TF1_ROOT.get(path, path),
    # Checkpoints of a run have the slots and weights of a classifier under our own names.
    canonical=lambda names: {_TF1_ROOT.get(name, name): name for name in names},
    ignored=TRAINING_STATE,
    heads=rf"{HEADS_PATTERN}|^output_(weights|bias)$",
)

# === transformers ===

_HF_LAST = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "output_weights": "weight",
    "output_bias": "bias",
    "word_embeddings": "word_embeddings.weight",
    "position_embeddings": "position_embeddings.weight",
    "token_type_embeddings": "token_type_embeddings.weight",
}
_HF_HEADS = {
    "cls/squad": "qa_outputs",
    "token_classification": "classifier",
    "multiple_choice": "classifier",
}
_HF_BARE = re.compile(r"^(embeddings|encoder|pooler)\.")


def _hf_name(path: str) -> str:
    scope, _, last = path.rpartition("/")
    scope = re.sub(r"/layer_(\d+)/", r"/layer/\1/", _HF_HEADS.get(scope, scope) + "/")
    return scope.replace("/", ".") + _HF_LAST.get(last, last)


def _hf_canonical(names: Iterable[str]) -> dict[str, str]:
    """Undo the spellings of older files (LayerNorm's gamma and beta) and of a bare encoder."""
    names_in_file: dict[str, str] = {}
    for name in names:
        canonical = re.sub(r"\.LayerNorm\.gamma$", ".LayerNorm.weight", name)
        canonical = re.sub(r"\.LayerNorm\.beta$", ".LayerNorm.bias", canonical)
        canonical = _HF_BARE.sub(r"bert.\1.", canonical)
        if canonical in names_in_file:
            raise ValueError(f"{names_in_file[canonical]!r} and {name!r} are the same weight")
        names_in_file[canonical] = name
    for copy, original in HF_TIED.items():
        if (
            copy in names_in_file and original not in names_in_file
        ):  # files keep one name of a shared tensor
            names_in_file[original] = names_in_file.pop(copy)
    return names_in_file


# The projection onto the vocabulary and its bias, and the weights that they are copies of.
HF_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

HF = Layout(
    name="transformers",
    theirs=_hf_name,
    transposed=lambda path: path.endswith("/kernel"),
    canonical=_hf_canonical,
    ignored=r"\.position_ids$|\.embeddings\.token_type_ids$|^cls\.predictions\.decoder\.",
    heads=r"^(cls|classifier|qa_outputs|window_pooling)\.",
)

# Kind of task (`tasks.KINDS`) of a classifier -> what transformers calls it in "problem_type". It
# tells what is made of the logits: probabilities of one label, of each by itself, or a number.
HF_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
HF_KINDS = {theirs: kind for kind, theirs in HF_PROBLEM_TYPES.items()}

# The class of transformers for each kind of model, and whether it has a pooler. Without next
# sentence prediction the kind "pretraining" is BertForMaskedLM.
HF_ARCHITECTURES = {
    "encoder": ("BertModel", True),
    "pretraining": ("BertForPreTraining", True),
    "masked_lm": ("BertForMaskedLM", False),
    "next_sentence": ("BertForNextSentencePrediction", True),
    "classification": ("BertForSequenceClassification", True),
    "span": ("BertForQuestionAnswering", False),
    "token_classification": ("BertForTokenClassification", False),
    "multiple_choice": ("BertForMultipleChoice", True),
}

# === Keras' HDF5 files ===


def _of_hdf5(rules: tuple[tuple[str, str], ...]) -> Callable[[Iterable[str]], dict[str, str]]:
    """Make a function that gives weights in an HDF5 file of Keras the names they have in a model.

    The file names a weight by the attributes that lead to it and its number in its layer; of
    several layers of a class in a list all but the first are numbered.

    Args:
        rules: regular expressions and replacements, applied one after the other.
    """

    def canonical(names: Iterable[str]) -> dict[str, str]:
        return unique_names((renamed(name), name) for name in names)

    def renamed(name: str) -> str:
        if name.startswith("layers/"):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
        return name

    return canonical


# Of names that other rules have found to be a model's.
_HDF5_ENDS = (
    (r"^(?!layers/)(.*norm)/vars/0$", r"\1/gamma"),
    (r"^(?!layers/)(.*norm)/vars/1$", r"\1/beta"),
    (r"^(?!layers/)(.*)/vars/0$", r"\1/kernel"),
    (r"^(?!layers/)(.*)/vars/1$", r"\1/bias"),
)

# === KerasHub ===

_ENDS = {"kernel", "bias", "gamma", "beta"}
_KERAS_HUB = {
    "bert/embeddings/word_embeddings": "token_embedding/embeddings",
    "bert/embeddings/position_embeddings": "position_embedding/embeddings",
    "bert/embeddings/token_type_embeddings": "segment_embedding/embeddings",
    "bert/embeddings/LayerNorm": "embeddings_layer_norm",
    "bert/pooler/dense": "pooled_dense",
}
_KERAS_HUB_LAYER = {
    "attention/self/query": "self_attention_layer/query",
    "attention/self/key": "self_attention_layer/key",
    "attention/self/value": "self_attention_layer/value",
    "attention/output/dense": "self_attention_layer/attention_output",
    "attention/output/LayerNorm": "self_attention_layer_norm",
    "intermediate/dense": "feedforward_intermediate_dense",
    "output/dense": "feedforward_output_dense",
    "output/LayerNorm": "feedforward_layer_norm",
}


def _renamer(
    table: dict[str, str], layers: dict[str, str], layer: str, first: int = 0
) -> Callable[[str], str | None]:
    """Make a function from our names by a table of scopes and one of scopes within a layer.

    Args:
        table: our weight or scope -> theirs.
        layers: our scope within bert/encoder/layer_N -> theirs.
        layer: their scope of a layer, with {} for its number.
        first: their number of the first layer.
    """

    def theirs(path: str) -> str | None:
        if path in table:
            return table[path]
        scope, _, last = path.rpartition("/")
        if last not in _ENDS:
            return None
        if scope in table:
            return f"{table[scope]}/{last}"
        match = re.match(r"bert/encoder/layer_(\d+)/(.+)$", scope)
        if match and match[2] in layers:
            return f"{layer.format(int(match[1]) + first)}/{layers[match[2]]}/{last}"
        return None

    return theirs


KERAS_HUB = Layout(
    name="KerasHub",
    theirs=_renamer(_KERAS_HUB, _KERAS_HUB_LAYER, "transformer_layer_{}"),
    canonical=_of_hdf5(
        (
            (r"^layers/reversible_embedding/vars/0$", "token_embedding/embeddings"),
            (r"^layers/position_embedding/vars/0$", "position_embedding/embeddings"),
            (r"^layers/embedding/vars/0$", "segment_embedding/embeddings"),
            (r"^layers/layer_normalization/", "embeddings_layer_norm/"),
            (r"^layers/dense/", "pooled_dense/"),
            (r"^layers/transformer_encoder/", "transformer_layer_0/"),
            (r"^layers/transformer_encoder_([1-9]\d*)/", r"transformer_layer_\1/"),
            # Not all versions of Keras have public names for these private attributes.
            (r"/_self_attention_layer/_?(query|key|value)_dense/", r"/self_attention_layer/\1/"),
            (r"/_self_attention_layer/_?output_dense/", "/self_attention_layer/attention_output/"),
            (r"/_(self_attention_layer_norm|feedforward_\w+)/", r"/\1/"),
            *_HDF5_ENDS,
        )
    ),
    split_heads=True,
)


# === TF Model Garden ===

# A TensorFlow 2 checkpoint names a tensor by the way to it from a Python object. "." is written
# ".." there, and "/" within a name ".S".
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_MODEL_GARDEN_LAYER = {
    "attention/self/query": "_attention_layer/_query_dense",
    "attention/self/key": "_attention_layer/_key_dense",
    "attention/self/value": "_attention_layer/_value_dense",
    "attention/output/dense": "_attention_layer/_output_dense",
    "attention/output/LayerNorm": "_attention_layer_norm",
    "intermediate/dense": "_intermediate_dense",
    "output/dense": "_output_dense",
    "output/LayerNorm": "_output_layer_norm",
}
_MODEL_GARDEN_HEADS = {
    "cls/predictions/transform/dense": "masked_lm/dense",
    "cls/predictions/transform/LayerNorm": "masked_lm/layer_norm",
    "cls/predictions/output_bias": "masked_lm/output_bias.Sbias",
    "cls/seq_relationship/output_weights": "model/classification_heads/0/out_proj/kernel",
    "cls/seq_relationship/output_bias": "model/classification_heads/0/out_proj/bias",
}
_NEXT_SENTENCE_POOLER = "next_sentence..pooler_dense"
# Its encoder is a functional model, whose layers are numbered ("bert"), or a layer ("bert_v2").
_FUNCTIONAL = {
    "bert/embeddings/word_embeddings": "layer_with_weights-0/embeddings",
    "bert/embeddings/position_embeddings": "layer_with_weights-1/embeddings",
    "bert/embeddings/token_type_embeddings": "layer_with_weights-2/embeddings",
    "bert/embeddings/LayerNorm": "layer_with_weights-3",
}
_COMPOSITE = {
    "bert/embeddings/word_embeddings": "_embedding_layer/embeddings",
    "bert/embeddings/position_embeddings": "_position_embedding_layer/embeddings",
    "bert/embeddings/token_type_embeddings": "_type_embedding_layer/embeddings",
    "bert/embeddings/LayerNorm": "_embedding_norm_layer",
    "bert/pooler/dense": "_pooler_layer",
}
_MODEL_GARDEN_ENCODER = re.compile(
    r"(.*/)(layer_with_weights-1|_position_embedding_layer)/embeddings" + re.escape(_VALUE)
)


def model_garden(names: Iterable[str]) -> Layout | None:
    """Return the layout of a checkpoint of TF Model Garden; None if it is not one of its BERT.

    Where next sentence prediction was trained, the pooler is the one that its head has of its own:
    the encoder's pooler learns nothing there.

    Args:
        names: of all tensors of the checkpoint.
    """
    names = set(names)
    prefixes = sorted(
        match[1] for name in names if (match := _MODEL_GARDEN_ENCODER.fullmatch(name))
    )
    if not prefixes:
        return None
    prefix = prefixes[0]
    if f"{prefix}_position_embedding_layer/embeddings{_VALUE}" in names:
        encoder, layer = dict(_COMPOSITE), "_transformer_layers/{}"
    else:
        numbers = [
            int(match[1])
            for name in names
            if (match := re.match(re.escape(prefix) + r"layer_with_weights-(\d+)/", name))
        ]
        encoder = {**_FUNCTIONAL, "bert/pooler/dense": f"layer_with_weights-{max(numbers)}"}
        layer = "layer_with_weights-{}"
    ignored = rf"^{_OBJECT_GRAPH}$|^save_counter/|^global_step/|^optimizer/|/\.OPTIMIZER_SLOT/"
    table = {ours: prefix + theirs for ours, theirs in encoder.items()} | _MODEL_GARDEN_HEADS
    if f"{table[WORD_EMBEDDINGS]}{_VALUE}" not in names:
        table[WORD_EMBEDDINGS] = "masked_lm/embedding_table"
    if f"{_NEXT_SENTENCE_POOLER}/kernel{_VALUE}" in names:
        ignored += "|^" + re.escape(table["bert/pooler/dense"]) + "/"
        table["bert/pooler/dense"] = _NEXT_SENTENCE_POOLER
    first = 0 if "_transformer" in layer else 4
    rename = _renamer(table, _MODEL_GARDEN_LAYER, prefix + layer, first)

    def theirs(path: str) -> str | None:
        name = rename(path)
        return None if name is None else name + _VALUE

    return Layout(
        name="TF Model Garden",
        theirs=theirs,
        transposed=lambda path: path == "cls/seq_relationship/output_weights",
        ignored=ignored,
        heads=r"^masked_lm/|^next_sentence\.\.|/classification_heads/",
        split_heads=True,
    )


# === Ours ===

OURS = Layout(
    name="bert_tf",
    theirs=lambda path: path,
    canonical=_of_hdf5(
        (
            (r"^layers/bert/embeddings/vars/0$", "bert/embeddings/word_embeddings"),
            (r"^layers/bert/embeddings/vars/1$", "bert/embeddings/token_type_embeddings"),
            (r"^layers/bert/embeddings/vars/2$", "bert/embeddings/position_embeddings"),
            (
                r"^layers/bert/encoder/transformer_layers/transformer_layer/",
                "bert/encoder/layer_0/",
            ),
            (
                r"^layers/bert/encoder/transformer_layers/transformer_layer_([1-9]\d*)/",
                r"bert/encoder/layer_\1/",
            ),
            (r"^layers/bert/(embeddings|pooler)/", r"bert/\1/"),
            (r"^layers/(pretraining_heads|next_sentence_scope|span_head)/", "cls/"),
            (r"^layers/classification_head/", "classifier/"),
            (r"^layers/(token_classification|multiple_choice)_head/", r"\1/"),
            (r"^layers/bi_lstm/lstm/(\w+)_layer/cell/", r"bilstm/lstm/\1_lstm/lstm_cell/"),
            (r"^layers/window_pooling/vars/0$", "window_pooling/query"),
            (r"^(bilstm/.*)/vars/1$", r"\1/recurrent_kernel"),
            (r"^(bilstm/.*)/vars/2$", r"\1/bias"),
            (r"^cls/predictions/vars/0$", "cls/predictions/output_bias"),
            (
                r"^(cls/\w+|classifier|token_classification|multiple_choice)/vars/0$",
                r"\1/output_weights",
            ),
            (
                r"^(cls/\w+|classifier|token_classification|multiple_choice)/vars/1$",
                r"\1/output_bias",
            ),
            (r"/self_attention/", "/self/"),
            (r"/residual_output/", "/output/"),
            (r"/layer_norm/vars/0$", "/LayerNorm/gamma"),
            (r"/layer_norm/vars/1$", "/LayerNorm/beta"),
            *_HDF5_ENDS,
        )
    ),
    heads=HEADS_PATTERN,
)


def is_object_checkpoint(names: Iterable[str]) -> bool:
    """Tell whether a TensorFlow checkpoint names its tensors by Python objects, as TF 2 does."""
    return _OBJECT_GRAPH in names


def kinds_of_heads(layout: Layout, names: Iterable[str]) -> list[str]:
    """Return the kinds of heads whose weights are among canonical names; several may share one."""
    names = set(names)
    kinds = [kind for kind, mark in HEAD_MARKS.items() if layout.theirs(mark) in names]
    if "pretraining" in kinds and "next_sentence" in kinds:
        kinds.remove("next_sentence")
    return kinds
