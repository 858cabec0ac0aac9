"""Checkpoints as models that take strings: by which class of `serving` each is served."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from bert_tf.models.variables import config_of
from bert_tf.serving.entity_tagging import EntityTagger
from bert_tf.serving.question_answering import QuestionAnswerer
from bert_tf.serving.served_model import ServedModel
from bert_tf.serving.text_models import (
    Classifier,
    Embedder,
    FillMask,
    MultiLabelClassifier,
    MultipleChoice,
    NextSentence,
    Regressor,
)
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tasks.kinds import KINDS
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.vocabulary import casing_of, load_vocab
from bert_tf.weights.checkpoint import open_checkpoint
from bert_tf.weights.load import load_bert, load_model


@dataclasses.dataclass(frozen=True)
class Served:
    """What a task is served by.

    Attributes:
        make: (model, text_to_ids, ...) -> the served model.
        head: key of `heads.HEADS`.
        arguments: names of what else `make` takes.
    """

    make: Callable[..., ServedModel]
    head: str
    arguments: tuple[str, ...] = ()


# Where several have one head, the first is what weights alone are taken for.
SERVED: dict[str, Served] = {
    "fill_mask": Served(FillMask, "pretraining", ("top_k",)),
    "classification": Served(Classifier, "classification", ("labels", "has_pairs")),
    "multi_label": Served(MultiLabelClassifier, "classification", ("labels", "has_pairs")),
    "regression": Served(Regressor, "classification", ("has_pairs",)),
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
    "multiple_choice": Served(MultipleChoice, "multiple_choice"),
    "next_sentence": Served(NextSentence, "next_sentence"),
    "embeddings": Served(Embedder, "encoder", ("layer",)),
}


def load_served_model(
    path: Any,
    *,
    task: str | None = None,
    vocab_file: str | os.PathLike | None = None,
    do_lower_case: bool | None = None,
    max_seq_length: int | None = None,
    has_pairs: bool | None = None,
    labels: Sequence[str] | None = None,
    null_score_diff_threshold: float | None = None,
    words: str = "punctuation",
    top_k: int = 5,
    layer: int = -1,
    dtype: Any = None,
) -> ServedModel:
    """Load a checkpoint as a model that takes strings.

    What is not given is what training wrote down (`tasks.TrainedTask`), where it did.

    Args:
        path: model directory or checkpoint, of any system that `checkpoints.load_model` reads.
        task: name in SERVED; None for what the weights and training say.
        vocab_file: vocabulary; None for the one with the weights.
        do_lower_case: casing; None for the model's.
        max_seq_length: where texts are cut; None for training's, or 128.
        has_pairs: whether a request has two texts; None for what training had.
        labels: names of the labels; None for those with the weights, or label 0, label 1, ...
        null_score_diff_threshold: of question_answering, no answer if the null score is greater;
            None for what training had.
        words: of token_classification, what parts the words; see `EntityTagger`.
        top_k: of fill_mask, candidates for each mask.
        layer: of embeddings, hidden state to take the mean of.
        dtype: a Keras dtype policy.

    Raises:
        FileNotFoundError: no checkpoint, or no vocabulary.
        ValueError: the task is unknown or not the model's, or an argument does not suit it.
    """
    if task is not None and task not in SERVED:
        raise ValueError(f"task: expected one of {', '.join(SERVED)}, got {task!r}")
    checkpoint = open_checkpoint(path)
    trained = None
    if checkpoint.located is not None:
        trained = read_trained_task(pathlib.Path(checkpoint.located.path).parent)
    if task is None and trained is not None:
        task = KINDS[trained.kind].served_by
    kind = SERVED[task].head if task else None
    loaded = load_model(checkpoint, kind=kind, do_lower_case=do_lower_case, dtype=dtype)
    model, tokenizer = loaded.model, loaded.tokenizer
    if task is None:
        task = next(name for name, row in SERVED.items() if row.head == loaded.kind)
    if task == "embeddings" and layer != -1:
        model = load_bert(checkpoint, hidden_states=True, dtype=dtype).encoder
    row = SERVED[task]
    if (
        trained is not None
        and task in {kind.served_by for kind in KINDS.values()}
        and task != KINDS[trained.kind].served_by
    ):
        raise ValueError(f"task: the model was trained for {trained.kind}, not for {task}")
    if vocab_file is not None:
        vocab = load_vocab(vocab_file)
    elif tokenizer is not None:
        vocab = tokenizer.vocab
    else:
        raise FileNotFoundError(f"vocab_file: no vocabulary lies with {path}; name one")
    if do_lower_case is None:
        do_lower_case = tokenizer.do_lower_case if tokenizer else casing_of(vocab) != "cased"
    trained = trained or TrainedTask("classification")
    if max_seq_length is None:
        max_seq_length = min(trained.max_seq_length, config_of(model).max_position_embeddings)
    text_to_ids = TextToIds.from_vocab(
        vocab, do_lower_case, max_seq_length, parse_mask=task == "fill_mask"
    )
    given: dict[str, Any] = {
        "top_k": top_k,
        "layer": layer,
        "has_pairs": trained.has_pairs if has_pairs is None else has_pairs,
        "words": words,
        "n_best_size": trained.n_best_size,
        "max_answer_length": trained.max_answer_length,
        "version_2_with_negative": trained.version_2_with_negative,
        "null_score_diff_threshold": trained.null_score_diff_threshold
        if null_score_diff_threshold is None
        else null_score_diff_threshold,
    }
    if "rule" in row.arguments:
        given["rule"] = _rule(max_seq_length, trained)
    if "labels" in row.arguments:
        count = model.output_shape[-1]
        given["labels"] = labels or loaded.labels or [f"label {i}" for i in range(count)]
    return row.make(model, text_to_ids, **{name: given[name] for name in row.arguments})


def _rule(max_seq_length: int, trained: TrainedTask) -> WindowRule:
    """Return how contexts are cut; of a short model a smaller part is the question's."""
    query = min(trained.max_query_length, max(1, (max_seq_length - 3) // 2))
    return WindowRule(max_seq_length, trained.doc_stride, query)
