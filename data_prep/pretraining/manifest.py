"""The manifest: what records hold, counted while they are made."""

import collections
import json
import os
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from bert_tf.files import sha256, write_whole
from bert_tf.tokenization.vocabulary import load_vocab
from data_prep.pretraining.options import Options, instances_of_files

HELD_SAMPLES = 1 << 18  # tokens, evenly spread over a corpus, that are looked for in the records


def held_step(num_tokens: int) -> int:
    """Return how many tokens of a corpus lie between two that are looked at."""
    return -(-num_tokens // HELD_SAMPLES)


class Statistics:
    """Counts over finished instances.

    Attributes:
        counts: instances, sequence_tokens, random_next and masked_tokens; bytes of a chunk.
        labels: int64 [highest label + 1], how often each id was masked.
        max_token_id: highest id of any sequence or label.
        held: bool [samples], whether a record holds a token, for every `held_step` of the corpus;
            None if not all was counted, by an earlier version.
    """

    def __init__(self):
        self.counts = collections.Counter()
        self.labels = np.zeros(0, np.int64)
        self.max_token_id = 0
        self.held: np.ndarray | None = np.zeros(0, np.bool_)

    def hold(self, pairs: np.ndarray, num_tokens: int) -> None:
        """Mark the tokens of the corpus that pairs hold.

        Args:
            pairs: PAIR_DTYPE [B], with starts in the corpus.
            num_tokens: tokens of the corpus.
        """
        step = held_step(num_tokens)
        size = -(-num_tokens // step)
        change = np.zeros(size + 1, np.int64)
        for side in "ab":
            start = pairs[f"{side}_start"]
            end = start + pairs[f"{side}_length"]
            change += np.bincount(-(-start // step), minlength=size + 1)
            change -= np.bincount(-(-end // step), minlength=size + 1)
        self._add_held(np.cumsum(change[:-1]) > 0)

    def _add_held(self, held: np.ndarray | None) -> None:
        if self.held is None or held is None:
            self.held = None
        elif self.held.size and held.size:
            self.held |= held
        elif held.size:
            self.held = held.copy()

    def add(self, arrays: dict[str, np.ndarray], length: np.ndarray) -> None:
        """Add a batch.

        Args:
            arrays: the records' features.
            length: int64 [B], tokens in each sequence.
        """
        self.counts["instances"] += len(length)
        self.counts["sequence_tokens"] += int(length.sum())
        self.counts["random_next"] += int(arrays["next_sentence_labels"].sum())
        self.max_token_id = max(self.max_token_id, int(arrays["input_ids"].max()))
        if "masked_lm_ids" in arrays:
            labels = arrays["masked_lm_ids"][arrays["masked_lm_weights"] > 0]
            # An id may occur as a label only.
            self.max_token_id = max(self.max_token_id, int(labels.max(initial=0)))
            self.counts["masked_tokens"] += labels.size
            self._add_labels(np.bincount(labels))

    def _add_labels(self, counts: np.ndarray) -> None:
        if counts.size > self.labels.size:
            counts, self.labels = self.labels, counts.astype(np.int64)
        self.labels[: counts.size] += counts

    def merge(self, other: "Statistics") -> None:
        """Add another's counts."""
        self.counts.update(other.counts)
        self.max_token_id = max(self.max_token_id, other.max_token_id)
        self._add_labels(other.labels)
        self._add_held(other.held)

    def write(self, stream: IO[bytes]) -> None:
        """Write the counts to a stream."""
        ids = np.flatnonzero(self.labels)
        held = {}
        if self.held is not None:
            held = {"held": np.flatnonzero(self.held), "held_samples": self.held.size}
        np.savez(
            stream,
            counts=np.array(json.dumps(self.counts)),
            max_token_id=self.max_token_id,
            label_ids=ids,
            label_counts=self.labels[ids],
            **held,
        )

    def save(self, path: str) -> None:
        """Write the counts to a file, which appears once it is whole."""
        with write_whole(path) as stream:
            self.write(stream)

    @classmethod
    def load(cls, source: str | IO[bytes]) -> "Statistics":
        """Read what `write` or `save` wrote, from a path or a stream that can seek."""
        result = cls()
        with np.load(source) as loaded:
            result.counts.update(json.loads(str(loaded["counts"])))
            result.max_token_id = int(loaded["max_token_id"])
            if loaded["label_ids"].size:
                result.labels = np.zeros(int(loaded["label_ids"].max()) + 1, np.int64)
                result.labels[loaded["label_ids"]] = loaded["label_counts"]
            result.held = None
            if "held" in loaded:
                result.held = np.zeros(int(loaded["held_samples"]), np.bool_)
                result.held[loaded["held"]] = True
        return result

    def unused_token_rate(self) -> float | None:
        """Share of the corpus' tokens that no record holds; None where it was not counted."""
        if self.held is None or not self.held.size:
            return None
        return 1 - int(np.count_nonzero(self.held)) / self.held.size

    def unigram_entropy_nats(self) -> float | None:
        """Entropy of the predicted tokens: the loss of knowing only how often each comes."""
        counts = self.labels[self.labels > 0]
        if not counts.size:
            return None
        share = counts / counts.sum()
        return float(-(share * np.log(share)).sum())


def make_manifest(
    options: Options, counts: dict[str, int], statistics: Statistics, file_bytes: Sequence[int]
) -> dict[str, Any]:
    """Return what is known of the records, for people and for training.

    Args:
        options: what was made from what.
        counts: documents, sentences, tokens and unknown_tokens of the text, and its
            `token_store.CHARACTER_COUNTS` where they are known.
        statistics: of all records.
        file_bytes: size of each output file.

    Returns:
        The manifest, of types that JSON has.
    """
    vocab = load_vocab(options.vocab_file)
    records = statistics.counts
    flags = options.described()
    words = {} if options.word_list is None else {"word_list_sha256": sha256(options.word_list)}
    for name in ("input_files", "output_files"):
        flags[name] = list(flags[name])
    return {
        "kind": "pretraining_unmasked" if options.dynamic_masking else "pretraining",
        "files": [os.path.basename(path) for path in options.output_files],
        "file_instances": instances_of_files(options, records["instances"]),
        "file_bytes": list(file_bytes),
        "counts": {
            "documents": counts["documents"],
            "sentences": counts["sentences"],
            "tokens": counts["tokens"],
            "instances": records["instances"],
            "masked_tokens": records["masked_tokens"],
            "random_next_fraction": records["random_next"] / max(records["instances"], 1),
            "unknown_token_rate": counts["unknown_tokens"] / max(counts["tokens"], 1),
            "padding_fraction": 1
            - records["sequence_tokens"] / max(records["instances"] * options.max_seq_length, 1),
            **_losses(counts, statistics),
        },
        "max_seq_length": options.max_seq_length,
        "max_predictions_per_seq": options.max_predictions_per_seq,
        "vocab_size": max(vocab.values()) + 1,
        "vocab_sha256": sha256(options.vocab_file),
        **words,
        "do_lower_case": options.do_lower_case,
        **({} if options.strip_accents is None else {"strip_accents": options.strip_accents}),
        "do_whole_word_mask": options.do_whole_word_mask,
        "max_token_id": statistics.max_token_id,
        # The masked language model's loss, if it knew only how often each token comes.
        "unigram_entropy_nats": statistics.unigram_entropy_nats(),
        "flags": flags,
    }


def _losses(counts: dict[str, int], statistics: Statistics) -> dict[str, Any]:
    """Return what text was lost on the way; what an earlier version did not count is left out."""
    losses: dict[str, Any] = {}
    if "characters" in counts:
        losses["characters"] = characters = counts["characters"]
        for name in ("unknown_character", "long_word_character"):
            losses[f"{name}_rate"] = counts[f"{name}s"] / max(characters, 1)
    if (unused := statistics.unused_token_rate()) is not None:
        losses["unused_token_rate"] = unused
    return losses
