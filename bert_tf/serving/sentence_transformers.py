"""Folders that sentence-transformers reads."""

import os

import keras

from bert_tf.files import local_path
from bert_tf.models.variables import config_of
from bert_tf.tasks.sentence_transformers import MODULES_NAME, write_sentence_transformers
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.save import save_hf


def save_sentence_transformers(
    directory: str | os.PathLike,
    model: keras.Model,
    tokenizer: FullTokenizer,
    *,
    pooling: str = "mean",
    normalize: bool = False,
    max_seq_length: int = 128,
    dtype: str = "float32",
) -> tuple[str, ...]:
    """Write a folder that `sentence_transformers.SentenceTransformer` reads, and transformers too.

    Args:
        directory: made where it is missing.
        model: a `bert_sentence_encoder` or an encoder.
        tokenizer: its tokenizer.
        pooling: how the vector of a text is made: "mean", "cls" or "max".
        normalize: whether it has length 1.
        max_seq_length: pieces of a text, longer ones are cut.
        dtype: of the weights, as for `save_hf`.

    Returns:
        As of `save_hf`.

    Raises:
        OSError: a file cannot be written.
        ValueError: an argument is wrong, or the length is beyond the model.
    """
    config = config_of(model)
    trained = TrainedTask(
        "similarity", max_seq_length=max_seq_length, pooling=pooling, normalize=normalize
    )
    if max_seq_length > config.max_position_embeddings:
        raise ValueError(
            f"max_seq_length: the model has {config.max_position_embeddings} positions, got "
            f"{max_seq_length}"
        )
    # By it the folder is known, so one that is written in part is not taken for the former model.
    (local_path(directory) / MODULES_NAME).unlink(missing_ok=True)
    skipped = save_hf(directory, model, tokenizer, dtype=dtype)
    write_sentence_transformers(local_path(directory), trained, config.hidden_size)
    return skipped
