"""Messages of the libraries that write files, which tell users nothing that they could act on."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def less_of(name: str | None, level: int) -> Iterator[None]:
    """Drop a logger's messages below a level, and leave the logger as it was.

    Args:
        name: the logger's; None for the root.
        level: of `logging`.
    """
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(max(before, level))
    try:
        yield
    finally:
        logger.setLevel(before)
