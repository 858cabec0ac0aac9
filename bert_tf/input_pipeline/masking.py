"""What a language model predicts, chosen in tf.data: masks by the original's rule, or what follows.

Shapes: B batch, L sequence length, P predictions per sequence, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.tasks import masking
from bert_tf.tokenization.vocabulary import CLS_TOKEN, MASK_TOKEN, PAD_TOKEN, SEP_TOKEN


@dataclasses.dataclass(frozen=True)
class MaskingRule:
    """Which pieces are masked, how many, and what stands in their place.

    Attributes:
        vocab: piece -> id, in the order of the vocabulary file.
        masked_lm_prob: fraction of the pieces of a sequence (specials counted) that is predicted.
        whole_word: choose whole words; a piece beginning with `##` belongs to the word before it.
        mask_prob: fraction of the chosen pieces that becomes [MASK].
        random_prob: fraction that becomes a piece drawn from the whole vocabulary.
        keep_prob: fraction that stays as it is. The three sum to 1.
    """

    vocab: Mapping[str, int]
    masked_lm_prob: float = masking.MASKED_LM_PROB
    whole_word: bool = False
    mask_prob: float = masking.MASK_PROB
    random_prob: float = masking.RANDOM_PROB
    keep_prob: float = masking.KEEP_PROB

    def __post_init__(self):
        needed = (PAD_TOKEN, CLS_TOKEN, SEP_TOKEN, MASK_TOKEN)
        missing = [token for token in needed if token not in self.vocab]
        if missing:
            raise ValueError(f"vocab: expected the special tokens, missing {', '.join(missing)}")
        masking.check_masking(self.masked_lm_prob, self.mask_prob, self.random_prob, self.keep_prob)

    def num_to_predict(self, max_seq_length: int, max_predictions_per_seq: int) -> np.ndarray:
        """Tabulate the pieces to predict for each sequence length 0..L: int32 [L + 1].

        A table, because Python rounds halves to even in double precision and the graph must agree.
        """
        return np.array(
            [
                masking.num_to_predict(n, self.masked_lm_prob, max_predictions_per_seq)
                for n in range(max_seq_length + 1)
            ],
            np.int32,
        )

    def most_predictions(self, input_mask: tf.Tensor, max_predictions_per_seq: int) -> tf.Tensor:
        """Return how many pieces of each sequence, integer [B, L], are predicted at most: int32."""
        length: Any = input_mask.shape[1]
        return tf.gather(
            tf.constant(self.num_to_predict(length, max_predictions_per_seq)),
            tf.math.count_nonzero(input_mask > 0, axis=1),
        )

    def choose(
        self, features: Mapping[str, tf.Tensor], *, max_predictions_per_seq: int, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Mask a batch; see `mask_batch`."""
        return mask_batch(
            features, rule=self, max_predictions_per_seq=max_predictions_per_seq, seed=seed
        )


@dataclasses.dataclass(frozen=True)
class NextPieceRule:
    """Every piece is predicted from those before it: the left-to-right language model.

    Reference:
        arXiv 1810.04805, section 5.1, LTR & No NSP.
    """

    def most_predictions(self, input_mask: tf.Tensor, max_predictions_per_seq: int) -> tf.Tensor:
        """Return how many pieces of each sequence, integer [B, L], are predicted: int32 [B]."""
        del max_predictions_per_seq
        return tf.math.count_nonzero(input_mask[:, 1:] > 0, axis=1, dtype=tf.int32)

    def choose(
        self, features: Mapping[str, tf.Tensor], *, max_predictions_per_seq: int, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Make each piece but the first the label of the position before it.

        Args:
            features: as for `mask_batch`; nothing in them is masked.
            max_predictions_per_seq: without effect.
            seed: without effect.

        Returns:
            The features, and masked_lm_positions 0..L-2, masked_lm_ids (int32 [B, L - 1]) and
            masked_lm_weights (float32 [B, L - 1], 1 where the piece is no padding).
        """
        del max_predictions_per_seq, seed
        labels = features["input_ids"][:, 1:]
        positions = tf.broadcast_to(tf.range(tf.shape(labels)[1]), tf.shape(labels))
        positions = tf.ensure_shape(positions, labels.shape)
        return {
            **features,
            "masked_lm_positions": positions,
            "masked_lm_ids": labels,
            "masked_lm_weights": tf.cast(features["input_mask"][:, 1:] > 0, tf.float32),
        }


def mask_batch(
    features: Mapping[str, tf.Tensor],
    *,
    rule: MaskingRule,
    max_predictions_per_seq: int,
    seed: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Mask a batch of unmasked pre-training examples.

    Args:
        features: int32 tensors input_ids, input_mask, segment_ids [B, L] with static L, and
            whatever else should pass through (next_sentence_labels).
        rule: what to mask.
        max_predictions_per_seq: P.
        seed: int32 [2]; the masks depend on it and on the features alone.

    Returns:
        The features with input_ids masked, and masked_lm_positions, masked_lm_ids (int32 [B, P],
        ascending positions, padded with 0) and masked_lm_weights (float32 [B, P], 1 where real).
    """
    input_ids = features["input_ids"]
    length = input_ids.shape.as_list()[1]
    if length is None:
        raise ValueError("features['input_ids']: expected a static length, got an unknown one")
    real = features["input_mask"] > 0
    special = (input_ids == rule.vocab[CLS_TOKEN]) | (input_ids == rule.vocab[SEP_TOKEN])
    candidate = real & tf.logical_not(special)  # [B, L]
    seeds = tf.random.split(seed, 3)

    word = _word_index(candidate, input_ids, rule)  # [B, L]
    budget = rule.most_predictions(features["input_mask"], max_predictions_per_seq)  # [B]
    chosen_word = _choose_words(
        word, candidate, budget, length, rule.whole_word, seeds[0]
    )  # [B, L]
    masked = candidate & tf.gather(chosen_word, tf.maximum(word, 0), batch_dims=1)  # [B, L]

    draw = tf.random.stateless_uniform(tf.shape(input_ids), seeds[1])
    whole_vocab = tf.constant(list(rule.vocab.values()), tf.int32)
    random_ids = tf.gather(
        whole_vocab,
        tf.random.stateless_uniform(
            tf.shape(input_ids), seeds[2], 0, len(rule.vocab), dtype=tf.int32
        ),
    )
    replacement = tf.where(
        draw < rule.mask_prob,
        rule.vocab[MASK_TOKEN],
        tf.where(draw < rule.mask_prob + rule.keep_prob, input_ids, random_ids),
    )

    # The largest of (L - position) are the first positions: top_k sorts them into ascending order.
    order = tf.where(masked, length - tf.range(length)[None, :], 0)
    ranks = tf.math.top_k(order, k=min(max_predictions_per_seq, length)).values
    ranks = tf.pad(ranks, [[0, 0], [0, max_predictions_per_seq - ranks.shape[1]]])  # [B, P]
    is_prediction = ranks > 0
    positions = tf.where(is_prediction, length - ranks, 0)
    labels = tf.gather(input_ids, positions, batch_dims=1)
    return {
        **features,
        "input_ids": tf.where(masked, replacement, input_ids),
        "masked_lm_positions": positions,
        "masked_lm_ids": tf.where(is_prediction, labels, 0),
        "masked_lm_weights": tf.cast(is_prediction, tf.float32),
    }


def _word_index(candidate: tf.Tensor, input_ids: tf.Tensor, rule: MaskingRule) -> tf.Tensor:
    """Count off the words that candidates belong to, int32 [B, L]; -1 before the first."""
    if not rule.whole_word:
        return tf.cumsum(tf.cast(candidate, tf.int32), axis=1) - 1
    continues = np.zeros(max(rule.vocab.values()) + 1, bool)
    continues[[i for piece, i in rule.vocab.items() if piece.startswith("##")]] = True
    first = candidate & (tf.cumsum(tf.cast(candidate, tf.int32), axis=1) == 1)
    starts = candidate & (tf.logical_not(tf.gather(tf.constant(continues), input_ids)) | first)
    return tf.cumsum(tf.cast(starts, tf.int32), axis=1) - 1


def _choose_words(
    word: tf.Tensor,
    candidate: tf.Tensor,
    budget: tf.Tensor,
    length: int,
    whole_word: bool,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Draw words in random order until the budget is full: bool [B, L] over word indices."""
    batch = tf.shape(word)[0]
    num_words = 1 + tf.reduce_max(word, axis=1)  # [B]
    exists = tf.range(length)[None, :] < num_words[:, None]
    key = tf.where(exists, tf.random.stateless_uniform(tf.shape(word), seed), 2.0)
    order = tf.argsort(key, axis=1)  # [B, L]: rank -> word
    rank = tf.argsort(order, axis=1)  # [B, L]: word -> rank
    if not whole_word:
        return exists & (rank < budget[:, None])

    rows = tf.range(batch)[:, None] * length
    sizes = tf.math.unsorted_segment_sum(
        tf.reshape(tf.cast(candidate, tf.int32), [-1]),
        tf.reshape(rows + tf.maximum(word, 0), [-1]),
        batch * length,
    )
    sizes = tf.gather(tf.reshape(sizes, [batch, length]), order, batch_dims=1)
    # A word that would exceed the budget is passed over and the search goes on, so the sum over
    # earlier ranks depends on what was taken: one step per rank, for all rows at once.
    taken = tf.TensorArray(tf.bool, size=length)

    def step(index, filled, taken):
        size = sizes[:, index]
        take = (size > 0) & (filled + size <= budget)
        return index + 1, filled + tf.where(take, size, 0), taken.write(index, take)

    taken = tf.while_loop(
        lambda index, filled, taken: index < length, step, (0, tf.zeros([batch], tf.int32), taken)
    )[2]
    flags = tf.transpose(taken.stack())  # [B, L] by rank
    flags.set_shape([None, length])
    return tf.gather(flags, rank, batch_dims=1)
