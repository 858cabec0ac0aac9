"""The schema of every kind of record, which writers and readers share.

Sizes, which the schemas take: L max_seq_length, tokens of a padded sequence; P
max_predictions_per_seq, padded number of masked tokens; K num_labels; C num_choices, sequences of
an example. Every record holds input_ids, input_mask and segment_ids, int64 [L], and most
is_real_example, int64 [1], 0 on what only fills up a batch.
"""

import dataclasses
from typing import Literal

import numpy as np

# The features that every record has: what the model reads.
INPUT_NAMES = ("input_ids", "input_mask", "segment_ids")
FIXED_WIDTH = {"int64": np.int64, "float32": np.float32}


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """One fixed-length feature of a record.

    Attributes:
        name: key in the `tf.train.Example`.
        dtype: type stored in the record, "int64" or "float32".
        length: number of values in each record, at least 1.

    Raises:
        ValueError: a dtype or length that records cannot hold.
    """

    name: str
    dtype: Literal["int64", "float32"]
    length: int

    def __post_init__(self):
        if self.dtype not in FIXED_WIDTH:
            raise ValueError(
                f"feature {self.name!r}: dtype must be 'int64' or 'float32', got {self.dtype!r}"
            )
        if self.length < 1:
            raise ValueError(f"feature {self.name!r}: length must be at least 1, got {self.length}")


def pretraining_features(
    max_seq_length: int, max_predictions_per_seq: int
) -> tuple[FeatureSpec, ...]:
    """Return the schema of masked pre-training records, with google-research/bert's names.

    Returns:
        The inputs; masked_lm_positions, masked_lm_ids int64 [P]; masked_lm_weights float32 [P] (1
        for a prediction, 0 for padding); next_sentence_labels int64 [1] (0 the actual next text, 1
        a random one).
    """
    return (
        *_input_features(max_seq_length),
        FeatureSpec("masked_lm_positions", "int64", max_predictions_per_seq),
        FeatureSpec("masked_lm_ids", "int64", max_predictions_per_seq),
        FeatureSpec("masked_lm_weights", "float32", max_predictions_per_seq),
        FeatureSpec("next_sentence_labels", "int64", 1),
    )


def unmasked_pretraining_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of sentence pairs whose masks are drawn while training (dynamic masking).

    Returns:
        The inputs; next_sentence_labels int64 [1].
    """
    return (*_input_features(max_seq_length), FeatureSpec("next_sentence_labels", "int64", 1))


def _input_features(length: int) -> tuple[FeatureSpec, ...]:
    """Return the model's three inputs."""
    return tuple(FeatureSpec(name, "int64", length) for name in INPUT_NAMES)


def _labelled_features(
    length: int, dtype: Literal["int64", "float32"], num_labels: int
) -> tuple[FeatureSpec, ...]:
    return (
        *_input_features(length),
        FeatureSpec("label_ids", dtype, num_labels),
        FeatureSpec("is_real_example", "int64", 1),
    )


def classification_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of texts, or pairs, with one label each.

    Returns:
        The inputs; label_ids int64 [1]; is_real_example.

    Reference: google-research/bert run_classifier.py, file_based_convert_examples_to_features.
    """
    return _labelled_features(max_seq_length, "int64", 1)


def regression_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of texts, or pairs, with a number each.

    Returns:
        As `classification_features`, but label_ids float32 [1].
    """
    return _labelled_features(max_seq_length, "float32", 1)


def multi_label_features(max_seq_length: int, num_labels: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of texts, or pairs, of which any number of labels may hold.

    Returns:
        As `classification_features`, but label_ids float32 [K], 1 for each label that holds, 0 for
        others.
    """
    return _labelled_features(max_seq_length, "float32", num_labels)


def multiple_choice_features(max_seq_length: int, num_choices: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of one context with several continuations.

    Returns:
        The inputs [C * L], one sequence after another; label_ids int64 [1], the right choice;
        is_real_example.
    """
    return _labelled_features(num_choices * max_seq_length, "int64", 1)


def similarity_features(max_seq_length: int, num_texts: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of texts whose likeness is a number.

    Returns:
        The inputs [C * L], one text after another; label_ids float32 [1]; is_real_example.
    """
    return _labelled_features(num_texts * max_seq_length, "float32", 1)


def retrieval_features(max_seq_length: int, num_texts: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of a text with its partner, and any hard negatives.

    Returns:
        The inputs [C * L], one text after another; label_ids int64 [C], equal for equal texts and 0
        for one that is not there; is_real_example.
    """
    return _labelled_features(num_texts * max_seq_length, "int64", num_texts)


def token_classification_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records with a label for each word.

    Returns:
        The inputs; label_ids int64 [L]; label_mask int64 [L] (1 where a label counts: on the first
        piece of a word of this window; label_ids is 0 elsewhere).
    """
    return (
        *_input_features(max_seq_length),
        FeatureSpec("label_ids", "int64", max_seq_length),
        FeatureSpec("label_mask", "int64", max_seq_length),
    )


def span_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Return the schema of records of a question with a window of the text that may answer it.

    Returns:
        unique_ids int64 [1]; the inputs; start_positions, end_positions, is_impossible int64 [1].

    Reference: google-research/bert run_squad.py, FeatureWriter.
    """
    return (
        FeatureSpec("unique_ids", "int64", 1),
        *_input_features(max_seq_length),
        FeatureSpec("start_positions", "int64", 1),
        FeatureSpec("end_positions", "int64", 1),
        FeatureSpec("is_impossible", "int64", 1),
    )
