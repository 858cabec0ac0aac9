"""Models with more words: rows of new pieces that begin as the mean of the pieces until now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_tf.models.variables import to_numpy, weights_by_name
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import CheckpointLike, open_checkpoint
from bert_tf.weights.load import RESIZABLE, LoadedModel, load_model


def load_with_new_words(
    path: CheckpointLike, tokenizer: FullTokenizer, extended: FullTokenizer, **options: Any
) -> LoadedModel:
    """Load a model whose vocabulary has got new pieces.

    The row of a new piece in the word embeddings, and its bias in the output of a masked language
    model, is the mean of those of the pieces that the model's own tokenizer cuts it into. The
    projection onto the vocabulary is the word embeddings. Everything else is as in the checkpoint.

    Args:
        path: as in `load_model`.
        tokenizer: the model's own.
        extended: that of the new vocabulary: what `tokenizer` has with the same ids, but that new
            pieces may have the ids of others, as [unused1], or ids beyond.
        **options: of `load_model`.

    Returns:
        The model; its vocab_size is larger where new pieces have ids beyond, and its tokenizer is
        `extended`.

    Raises:
        FileNotFoundError, CorruptCheckpointError: as in `load_model`.
        ValueError: as in `load_model`; or pieces have other ids than before.
    """
    added = _new_pieces(tokenizer.vocab, extended.vocab)
    checkpoint = open_checkpoint(path)
    size = max(extended.vocab.values()) + 1
    if checkpoint.config is not None and size > checkpoint.config.vocab_size:
        options["vocab_size"] = size
    loaded = load_model(checkpoint, **options)
    weights = weights_by_name(loaded.model)
    parts = {i: list(tokenizer.wordpiece_tokenizer.encode_word(word)) for word, i in added.items()}
    for name in RESIZABLE["vocab_size"]:
        if name not in weights:
            continue
        rows = np.array(to_numpy(weights[name]))  # [V, D] or [V]
        means = {i: np.mean(rows[ids].astype(np.float64), axis=0) for i, ids in parts.items()}
        for i, mean in means.items():
            rows[i] = mean
        weights[name].assign(rows)
    return loaded._replace(tokenizer=extended)


def _new_pieces(vocab: Mapping[str, int], extended: Mapping[str, int]) -> dict[str, int]:
    """Return the pieces that only the extended vocabulary has; refuse those that have moved."""
    moved = [piece for piece, i in extended.items() if vocab.get(piece, i) != i]
    if moved:
        raise ValueError(
            f"extended: {len(moved)} pieces have other ids than in the vocabulary, as "
            f"{moved[0]!r}: {extended[moved[0]]}, expected {vocab[moved[0]]}"
        )
    return {piece: i for piece, i in extended.items() if piece not in vocab}
