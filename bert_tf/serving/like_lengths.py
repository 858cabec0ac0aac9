"""Which texts a model computes together: padding takes it as long as text does."""

from collections.abc import Iterator, Sequence

import numpy as np

MAX_ROW_PADDING = 0.5
# What a row costs besides its text, in bytes of text: the shortest may as well run together.
_ROW_BYTES = 64


def row_padding(sizes: Sequence[int]) -> float:
    """Estimate how much of its row the shortest of some texts leaves to padding, from 0 to 1.

    Args:
        sizes: bytes of the texts of each row.
    """
    return 1 - (_ROW_BYTES + min(sizes)) / (_ROW_BYTES + max(sizes))


def batches_of_like_length(sizes: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yield the numbers of the rows of each batch, the shortest rows first.

    Args:
        sizes: bytes of the texts of each row.
        batch_size: rows of a batch at most.
    """
    order = np.argsort(sizes, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        ends = end == len(order) or end - start == batch_size
        if ends or row_padding([sizes[order[start]], sizes[order[end]]]) > MAX_ROW_PADDING:
            yield order[start:end]
            start = end
