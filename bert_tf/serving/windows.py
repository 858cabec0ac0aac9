"""Texts longer than a sequence, cut into windows inside the graph as `tasks` cuts documents.

Shapes: B texts, T pieces, N windows of all texts, L pieces of the longest window.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

_AT_ONCE = 32  # windows; more make nothing faster and take memory


class Windows(NamedTuple):
    """Windows of texts, those of a text from left to right.

    Attributes:
        rows: int32 [N], the text of each.
        starts: int32 [N], the first piece that it shows, counted in its text.
        lengths: int32 [N], how many it shows.
        offsets: int32 [N], position of that first piece in the window.
        shows: bool [N, L], where pieces of the text stand.
        pieces: int32 [N, L], index of the piece there among those of all texts.
        is_max_context: bool [N, L], whether of all windows this one shows most around a piece.
        inputs: input_ids, input_mask and segment_ids, int32 [N, L].
    """

    rows: tf.Tensor
    starts: tf.Tensor
    lengths: tf.Tensor
    offsets: tf.Tensor
    shows: tf.Tensor
    pieces: tf.Tensor
    is_max_context: tf.Tensor
    inputs: dict[str, tf.Tensor]


def windows_in_graph(
    ids: tf.RaggedTensor,
    heads: tf.RaggedTensor,
    *,
    sep_id: int,
    pad_id: int,
    max_seq_length: int,
    stride: int,
    segment: int,
    most: int | None = None,
) -> Windows:
    """Cut texts into windows.

    Args:
        ids: int32 ragged [B, (T)], pieces of the texts.
        heads: int32 ragged [B, (H)], what stands before the text in each window.
        sep_id: what stands after it.
        pad_id: padding.
        max_seq_length: pieces of a window at most, more than the longest head and one.
        stride: pieces between the starts of two windows.
        segment: segment id of the text and of what stands after it.
        most: windows of a text at most; what is beyond them is cut. None for any number.

    Returns:
        At least one window for each text.

    Reference: google-research/bert run_squad.py, convert_examples_to_features.
    """
    sizes = _lengths(ids)  # [B]
    offsets = _lengths(heads)
    room = max_seq_length - 1 - offsets
    strides = tf.minimum(stride, room)
    counts = 1 + (tf.maximum(sizes - room, 0) + strides - 1) // strides
    counts = counts if most is None else tf.minimum(counts, most)
    rows = tf.repeat(tf.range(tf.size(sizes)), counts)  # [N]
    numbers = tf.range(tf.size(rows)) - tf.gather(tf.cumsum(counts, exclusive=True), rows)
    starts = numbers * tf.gather(strides, rows)
    lengths = tf.minimum(tf.gather(sizes, rows) - starts, tf.gather(room, rows))
    offsets = tf.gather(offsets, rows)

    longest = tf.maximum(tf.reduce_max(offsets + lengths + 1), 1)  # of no windows at all
    position = tf.range(longest)  # [L]
    place = position - offsets[:, None]  # [N, L], of a piece in the window's part of the text
    shows = (place >= 0) & (place < lengths[:, None])
    pieces = tf.gather(_starts(ids), rows)[:, None] + starts[:, None] + place
    pieces = tf.where(shows, pieces, 0)
    in_head = place < 0
    head = tf.where(in_head, tf.gather(_starts(heads), rows)[:, None] + position, 0)
    input_ids = tf.where(place == lengths[:, None], sep_id, pad_id)
    input_ids = tf.where(in_head, _gather(heads.flat_values, head), input_ids)
    input_ids = tf.where(shows, _gather(ids.flat_values, pieces), input_ids)
    used = position <= (offsets + lengths)[:, None]
    return Windows(
        rows=rows,
        starts=starts,
        lengths=lengths,
        offsets=offsets,
        shows=shows,
        pieces=pieces,
        is_max_context=_max_context(shows, place, lengths, pieces, tf.size(ids.flat_values)),
        inputs={
            "input_ids": input_ids,
            "input_mask": tf.cast(used, tf.int32),
            "segment_ids": tf.where(used & (place >= 0), segment, 0),
        },
    )


def _lengths(ragged: tf.RaggedTensor) -> tf.Tensor:
    return tf.cast(ragged.row_lengths(), tf.int32)


def _starts(ragged: tf.RaggedTensor) -> tf.Tensor:
    return tf.cast(ragged.row_starts(), tf.int32)


def _gather(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Gather from what may be empty, where only index 0 is asked for."""
    return tf.gather(tf.concat([values, tf.zeros([1], values.dtype)], 0), indices)


def _max_context(
    shows: tf.Tensor, place: tf.Tensor, lengths: tf.Tensor, pieces: tf.Tensor, num_pieces: tf.Tensor
) -> tf.Tensor:
    """No other window has more context there, and no earlier one as much: bool [N, L].

    Reference: google-research/bert run_squad.py, _check_is_max_context.
    """
    left = place
    right = lengths[:, None] - 1 - place
    # In float64 as in the original, where the second term decides between equal contexts.
    context = tf.cast(tf.minimum(left, right), tf.float64)
    context += 0.01 * tf.cast(lengths, tf.float64)[:, None]
    shown = tf.where(shows)  # [S, 2]
    shown_pieces = tf.gather_nd(pieces, shown)
    shown_context = tf.gather_nd(context, shown)
    best = tf.math.unsorted_segment_max(shown_context, shown_pieces, num_pieces)
    is_best = shown_context == tf.gather(best, shown_pieces)
    numbers = tf.where(is_best, shown[:, 0], shown.dtype.max)
    winner = tf.math.unsorted_segment_min(numbers, shown_pieces, num_pieces)
    is_winner = tf.gather(winner, shown_pieces) == shown[:, 0]
    return tf.scatter_nd(shown, is_winner, tf.shape(shows, shown.dtype))


def run_in_parts(
    run: Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]],
    inputs: Mapping[str, tf.Tensor],
    shapes: Mapping[str, Sequence[int | None]],
) -> dict[str, tf.Tensor]:
    """Run a model over windows, some at a time, so that a long text does not take all memory.

    Args:
        run: inputs [n, L] -> name -> float32 [n, L, ...].
        inputs: int32 [N, L].
        shapes: of what `run` gives, None where a size is free.

    Returns:
        name -> float32 [N, L, ...].
    """
    total = tf.shape(inputs["input_ids"])[0]
    arrays = {
        name: tf.TensorArray(
            tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=[None, *shape[1:]]
        )
        for name, shape in shapes.items()
    }

    def body(start, arrays):
        part = {name: value[start : start + _AT_ONCE] for name, value in inputs.items()}
        number = start // _AT_ONCE
        outputs = run(part)
        return start + _AT_ONCE, {n: array.write(number, outputs[n]) for n, array in arrays.items()}

    _, arrays = tf.while_loop(  # once for no windows too, as nothing cannot be joined
        lambda start, _: start < tf.maximum(total, 1),
        body,
        (tf.constant(0), arrays),
        parallel_iterations=1,
    )
    return {name: array.concat() for name, array in arrays.items()}
