"""The encoder that features are taken from."""

from __future__ import annotations

from typing import Any

from absl import flags

from bert_tf.tokenization.vocabulary import check_special_tokens, validate_case_matches_checkpoint
from bert_tf.tokenization.wordpiece import FullTokenizer


def load_model(values: flags.FlagValues) -> Any:
    """Load what `define_model_flags` names, as `bert_tf.load_bert` does, with hidden states.

    Raises:
        ValueError, OSError: it is damaged, not there, or has no vocabulary.
    """
    import bert_tf

    if values.model_dir:
        loaded = bert_tf.load_bert(
            values.model_dir, hidden_states=True, do_lower_case=values.do_lower_case
        )
        tokenizer = loaded.tokenizer
        if tokenizer is None:
            raise FileNotFoundError(f"--model_dir: no vocabulary lies in {values.model_dir}")
    else:
        casing = True if values.do_lower_case is None else values.do_lower_case
        validate_case_matches_checkpoint(casing, values.init_checkpoint)
        tokenizer = FullTokenizer(values.vocab_file, casing)
        config = bert_tf.BertConfig.from_json_file(values.bert_config_file)
        loaded = bert_tf.load_bert(values.init_checkpoint, hidden_states=True, config=config)
    check_special_tokens(tokenizer.vocab, tokenizer.vocab_file)
    return loaded._replace(tokenizer=tokenizer)


def check_length(max_seq_length: int, config: Any) -> None:
    """Refuse a length that leaves no room for text, or that the model has no positions for."""
    if not 3 <= max_seq_length <= config.max_position_embeddings:
        raise ValueError(
            f"--max_seq_length: expected 3 to {config.max_position_embeddings} "
            f"(max_position_embeddings of the model), got {max_seq_length}"
        )
