"""Which share of the pieces the masked language model predicts, and what stands in their place.

Masks are drawn where records are made (`data_prep.pretraining`) and, anew for each epoch, in the
input pipeline; both keep to this.

Reference:
    google-research/bert create_pretraining_data.py, lines 342-415; the mix of the three is that of
    table 8 of arXiv 1810.04805.
"""

MASKED_LM_PROB = 0.15  # of the pieces of a sequence, specials counted, are predicted
MASK_PROB, RANDOM_PROB, KEEP_PROB = 0.8, 0.1, 0.1  # of those become [MASK], any piece, or stay


def check_masking(
    masked_lm_prob: float, mask_prob: float, random_prob: float, keep_prob: float
) -> None:
    """Refuse fractions that are none.

    Args:
        masked_lm_prob: fraction of the pieces of a sequence that is predicted.
        mask_prob: fraction of those that becomes [MASK].
        random_prob: fraction that becomes a piece drawn from the whole vocabulary.
        keep_prob: fraction that stays as it is.

    Raises:
        ValueError: a fraction is out of bounds, or the mix does not sum to 1.
    """
    if not 0 < masked_lm_prob <= 1:
        raise ValueError(f"masked_lm_prob must be within (0, 1], got {masked_lm_prob}")
    mix = (mask_prob, random_prob, keep_prob)
    if min(mix) < 0 or abs(sum(mix) - 1) > 1e-6:
        raise ValueError(
            "mask_prob, random_prob and keep_prob must be fractions that sum to 1, got "
            + ", ".join(map(str, mix))
        )


def num_to_predict(length: int, masked_lm_prob: float, most: int) -> int:
    """Return how many pieces of a sequence are predicted.

    Args:
        length: pieces of the sequence, specials counted.
        masked_lm_prob: fraction of them.
        most: predictions at most.
    """
    # Halves round to even, as in the original.
    return min(most, max(1, int(round(length * masked_lm_prob))))
