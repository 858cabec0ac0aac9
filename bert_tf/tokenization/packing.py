"""Sentences and pairs packed between [CLS] and [SEP]."""

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


def truncate_pair(
    tokens_a: Sequence[_T], tokens_b: Sequence[_T], max_num_tokens: int
) -> tuple[Sequence[_T], Sequence[_T]]:
    """Cut two sequences to a total length: always the end of the longer, of B when equal.

    Args:
        tokens_a: pieces or ids of the first text.
        tokens_b: pieces or ids of the second.
        max_num_tokens: greatest total length, at least 0.

    Reference: google-research/bert run_classifier.py, _truncate_seq_pair. (Pre-training truncates
    in another way.)
    """
    if max_num_tokens < 0:
        raise ValueError(f"max_num_tokens must be at least 0, got {max_num_tokens}")
    length_a, length_b = len(tokens_a), len(tokens_b)
    if length_a + length_b > max_num_tokens:
        half_a, half_b = max_num_tokens - max_num_tokens // 2, max_num_tokens // 2
        if length_a <= half_a:
            length_b = max_num_tokens - length_a
        elif length_b <= half_b:
            length_a = max_num_tokens - length_b
        else:
            length_a, length_b = half_a, half_b
    return tokens_a[:length_a], tokens_b[:length_b]


def pack_pair(
    ids_a: Sequence[int],
    ids_b: Sequence[int] | None,
    max_seq_length: int,
    *,
    cls_id: int,
    sep_id: int,
    pad_id: int = 0,
) -> tuple[list[int], list[int], list[int]]:
    """Pack one or two texts as fine-tuning does: [CLS] A [SEP], or [CLS] A [SEP] B [SEP].

    Args:
        ids_a: ids of the first text.
        ids_b: ids of the second; None or empty if there is none.
        max_seq_length: length of the result; longer input is cut as in `truncate_pair`.
        cls_id: id of [CLS].
        sep_id: id of [SEP].
        pad_id: id of [PAD].

    Returns:
        (input_ids, input_mask, segment_ids), each of length max_seq_length. The mask is 1 on what
        is not padding; segment ids are 1 on B and its [SEP].

    Raises:
        ValueError: max_seq_length leaves no room for the special tokens.

    Reference: google-research/bert run_classifier.py, convert_single_example.
    """
    num_special = 3 if ids_b else 2
    if max_seq_length < num_special:
        raise ValueError(f"max_seq_length must be at least {num_special}, got {max_seq_length}")
    ids_a, kept_b = truncate_pair(ids_a, ids_b or (), max_seq_length - num_special)
    input_ids = [cls_id, *ids_a, sep_id]
    segment_ids = [0] * len(input_ids)
    if kept_b:  # where nothing is left of B, so is nothing of its [SEP]
        input_ids += [*kept_b, sep_id]
        segment_ids += [1] * (len(kept_b) + 1)
    num_padding = max_seq_length - len(input_ids)
    input_mask = [1] * len(input_ids) + [0] * num_padding
    return input_ids + [pad_id] * num_padding, input_mask, segment_ids + [0] * num_padding
