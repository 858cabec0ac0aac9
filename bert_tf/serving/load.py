"""Checkpoints as models that take strings: by which class of `serving` each is served."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from bert_tf.serving import text_models
from bert_tf.serving.entity_tagging import EntityTagger
from bert_tf.serving.options import ServingOptions
from bert_tf.serving.question_answering import QuestionAnswerer
from bert_tf.serving.served_model import ServedModel
from bert_tf.tasks.document_windows import TextRule, WindowRule
from bert_tf.tasks.kinds import KINDS
from bert_tf.tasks.sentence_transformers import read_sentence_transformers
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.vocabulary import casing_of, load_vocab
from bert_tf.weights.checkpoint import CheckpointLike, open_checkpoint
from bert_tf.weights.layouts import HF_KINDS
from bert_tf.weights.load import DType, LoadedModel, load_bert, load_model


@dataclasses.dataclass(frozen=True)
class Served:
    """What a task is served by.

    Attributes:
        make: (model, text_to_ids, ...) -> the served model.
        head: key of `task_models.HEADS`.
        arguments: names of what else `make` takes.
    """

    make: Callable[..., ServedModel]
    head: str
    arguments: tuple[str, ...] = ()


# Where several have one head, the first is what weights alone are taken for.
SERVED: dict[str, Served] = {
    "fill_mask": Served(text_models.FillMask, "pretraining", ("top_k",)),
    "classification": Served(
        text_models.Classifier, "classification", ("labels", "has_pairs", "temperature", "windows")
    ),
    "multi_label": Served(
        text_models.MultiLabelClassifier,
        "classification",
        ("labels", "has_pairs", "temperature", "thresholds", "windows"),
    ),
    "regression": Served(text_models.Regressor, "classification", ("has_pairs", "windows")),
    "question_answering": Served(
        QuestionAnswerer,
        "span",
        (
            "rule",
            "n_best_size",
            "max_answer_length",
            "version_2_with_negative",
            "null_score_diff_threshold",
        ),
    ),
    "token_classification": Served(EntityTagger, "token_classification", ("labels", "words")),
    "multiple_choice": Served(text_models.MultipleChoice, "multiple_choice"),
    "next_sentence": Served(text_models.NextSentence, "next_sentence"),
    "embeddings": Served(text_models.Embedder, "encoder", ("layer", "pooling", "normalize")),
}


# Tasks that a model has to be fine-tuned for; any has vectors.
_TRAINED_TASKS = {kind.served_by for kind in KINDS.values()} - {"embeddings"}


def load_served_model(path: CheckpointLike, *, dtype: DType = None, **options: Any) -> ServedModel:
    """Load a checkpoint as a model that takes strings.

    Args:
        path: model directory or checkpoint, of any system that `weights.load_model` reads.
        dtype: a Keras dtype policy.
        **options: fields of `ServingOptions`; those left out are what training wrote down
            (`tasks.TrainedTask`), where it did.

    Raises:
        FileNotFoundError: no checkpoint, or no vocabulary.
        ValueError: the task is unknown or not the model's, or an option does not suit it.
    """
    serving = ServingOptions(**options)
    task = serving.task
    if task is not None and task not in SERVED:
        raise ValueError(f"task: expected one of {', '.join(SERVED)}, got {task!r}")
    # The served model tells the doubts about the vocabulary that it has.
    checkpoint = dataclasses.replace(open_checkpoint(path), doubts_told=True)
    trained = None
    if checkpoint.located is not None:
        folder = pathlib.Path(checkpoint.located.path).parent
        trained = read_trained_task(folder) or read_sentence_transformers(folder)
    if task is None and trained is not None:
        task = KINDS[trained.kind].served_by
    kind = SERVED[task].head if task else None
    # A model that was pre-trained has heads, which vectors do not need.
    ignore = (checkpoint.layout.heads,) if task == "embeddings" else ()
    loaded = load_model(
        checkpoint, kind=kind, do_lower_case=serving.do_lower_case, dtype=dtype, ignore=ignore
    )
    if task is None and loaded.problem_type is not None:
        task = HF_KINDS[loaded.problem_type]
    if task is None:
        task = next(name for name, row in SERVED.items() if row.head == loaded.kind)
    if trained and task in _TRAINED_TASKS and task != KINDS[trained.kind].served_by:
        raise ValueError(f"task: the model was trained for {trained.kind}, not for {task}")
    trained, model = trained or TrainedTask("classification"), loaded.model
    if task == "embeddings" and serving.layer != -1:
        model = load_bert(checkpoint, hidden_states=True, dtype=dtype).encoder
    text_to_ids = _text_to_ids(loaded, serving, trained, task, path)
    row = SERVED[task]
    arguments = _arguments(row.arguments, loaded, serving, trained, text_to_ids.max_seq_length)
    return row.make(model, text_to_ids, **arguments)


def _text_to_ids(
    loaded: LoadedModel,
    serving: ServingOptions,
    trained: TrainedTask,
    task: str,
    path: CheckpointLike,
) -> TextToIds:
    """Make the tokenizer, of the vocabulary that is named or lies with the weights."""
    tokenizer, do_lower_case = loaded.tokenizer, serving.do_lower_case
    if serving.vocab_file is not None:
        vocab = load_vocab(serving.vocab_file)
    elif tokenizer is not None:
        vocab = tokenizer.vocab
    else:
        raise FileNotFoundError(f"vocab_file: no vocabulary lies with {path}; name one")
    if do_lower_case is None:
        do_lower_case = tokenizer.do_lower_case if tokenizer else casing_of(vocab) != "cased"
    strip_accents = serving.strip_accents
    if strip_accents is None and tokenizer and tokenizer.strip_accents != tokenizer.do_lower_case:
        strip_accents = tokenizer.strip_accents
    max_seq_length = serving.max_seq_length
    if max_seq_length is None:
        max_seq_length = min(trained.max_seq_length, loaded.config.max_position_embeddings)
    return TextToIds.from_vocab(
        vocab,
        do_lower_case,
        max_seq_length,
        parse_mask=task == "fill_mask",
        strip_accents=strip_accents,
    )


def _arguments(
    names: Sequence[str],
    loaded: LoadedModel,
    serving: ServingOptions,
    trained: TrainedTask,
    max_seq_length: int,
) -> dict[str, Any]:
    """Return the values of a row's arguments: what was asked for, or else trained with."""
    values = {**vars(trained), **{n: v for n, v in vars(serving).items() if v is not None}}
    if "labels" in names:
        count = loaded.model.output_shape[-1]
        values["labels"] = serving.labels or loaded.labels or [f"label {i}" for i in range(count)]
    if "rule" in names:
        values["rule"] = _rule(max_seq_length, trained)
    if "windows" in names:
        values["windows"] = _windows(loaded, serving, trained, max_seq_length)
    return {name: values[name] for name in names}


def _windows(
    loaded: LoadedModel, serving: ServingOptions, trained: TrainedTask, max_seq_length: int
) -> TextRule | None:
    """Return how texts are cut for a model of windows; None for another."""
    if loaded.config.window_pooling is None:
        if serving.max_windows is not None:
            raise ValueError("max_windows: the model reads texts as one sequence each")
        return None
    has_pairs = trained.has_pairs if serving.has_pairs is None else serving.has_pairs
    # Windows shorter than training's leave less to the first text of a pair, and no piece out.
    query, room = trained.max_query_length, max_seq_length - 2
    if has_pairs:
        query = min(query, max(1, (max_seq_length - 3) // 2))
        room = max_seq_length - 3 - query
    return TextRule(
        max_seq_length,
        min(trained.doc_stride, max(1, room)),
        serving.max_windows or trained.max_windows or TextRule.max_windows,
        has_pairs,
        query,
    )


def _rule(max_seq_length: int, trained: TrainedTask) -> WindowRule:
    """Return how contexts are cut; of a short model a smaller part is the question's."""
    query = min(trained.max_query_length, max(1, (max_seq_length - 3) // 2))
    return WindowRule(max_seq_length, trained.doc_stride, query)
