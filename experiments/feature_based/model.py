"""The encoder that features are taken from."""

from typing import NamedTuple

import keras
from absl import logging

from bert_tf.config import BertConfig
from bert_tf.tokenization.vocabulary import (
    check_special_tokens,
    validate_case_matches_checkpoint,
    vocabulary_doubts,
)
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.load import load_bert
from experiments.feature_based.options import FrozenModelOptions


class FrozenModel(NamedTuple):
    """An encoder that gives all hidden states, and what belongs to it."""

    encoder: keras.Model
    config: BertConfig
    tokenizer: FullTokenizer


def load_model(options: FrozenModelOptions) -> FrozenModel:
    """Load the model that options name.

    Raises:
        ValueError, OSError: it is damaged, not there, or has no vocabulary.
    """
    source = options.source
    if source.model_dir:
        encoder, config, tokenizer = load_bert(
            source.model_dir, hidden_states=True, do_lower_case=source.do_lower_case
        )
        if tokenizer is None:
            raise FileNotFoundError(f"--model_dir: no vocabulary lies in {source.model_dir}")
        tokenizer = tokenizer.with_strip_accents(source.strip_accents)
    else:
        casing = True if source.do_lower_case is None else source.do_lower_case
        validate_case_matches_checkpoint(casing, source.init_checkpoint)
        tokenizer = FullTokenizer(
            source.vocab_file or "", casing, strip_accents=source.strip_accents
        )
        config = BertConfig.from_json_file(source.bert_config_file or "")
        encoder = load_bert(source.init_checkpoint, hidden_states=True, config=config).encoder
    check_special_tokens(tokenizer.vocab, tokenizer.vocab_file)
    if not source.model_dir:  # whose own vocabulary was looked at in loading
        for doubt in vocabulary_doubts(tokenizer.vocab, tokenizer.do_lower_case, config.vocab_size):
            logging.warning("%s: %s", tokenizer.vocab_file, doubt)
    return FrozenModel(encoder, config, tokenizer)


def check_length(max_seq_length: int, config: BertConfig) -> None:
    """Refuse a length that leaves no room for text, or that the model has no positions for."""
    if not 3 <= max_seq_length <= config.max_position_embeddings:
        raise ValueError(
            f"--max_seq_length: expected 3 to {config.max_position_embeddings} "
            f"(max_position_embeddings of the model), got {max_seq_length}"
        )
