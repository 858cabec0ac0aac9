"""Pre-training instances exactly as google-research/bert draws them, draw by draw.

For `--compatible`: with the same text, flags and seed the instances, and their order, are those of
the original script. Everything is in memory and one document comes after the other, as there,
since each draw of the one generator depends on all before. `instances.py` draws the same
distribution in bulk.

Ids stand for the original's pieces: a vocabulary maps distinct pieces to distinct ids.
"""

import array
import dataclasses
import random
from collections.abc import Iterator, Sequence

from data_prep.pretraining import instances

Sentence = Sequence[int]
Document = Sequence[Sentence]


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """One masked sequence [CLS] A [SEP] B [SEP].

    Attributes:
      ids: masked sequence.
      a_end: position of the first [SEP].
      positions: masked positions, increasing.
      labels: ids that stood there.
      is_random_next: whether B does not follow A.
    """

    ids: array.array
    a_end: int
    positions: array.array
    labels: array.array
    is_random_next: bool


class InstanceMaker:
    """Draws the instances of documents from one generator, in the original's order of draws."""

    def __init__(
        self,
        documents: Sequence[Document],
        pair_rule: instances.PairRule,
        mask_rule: instances.MaskRule,
        vocabulary: instances.VocabularyTable,
        rng: random.Random,
    ):
        """Keeps what all draws need.

        Args:
          documents: all documents in the order in which they are worked through, none empty.
          pair_rule: how pairs are cut.
          mask_rule: how tokens are masked.
          vocabulary: ids of the special tokens and of the random replacements.
          rng: the one generator, in the state after the documents were shuffled.
        """
        self._documents = documents
        self._pair_rule = pair_rule
        self._mask_rule = mask_rule
        self._vocabulary = vocabulary
        self._word_ids = vocabulary.word_ids.tolist()
        self._is_continuation = vocabulary.is_continuation.tolist()
        mix = mask_rule.random_prob + mask_rule.keep_prob
        self._keep_share = mask_rule.keep_prob / mix if mix else 0.0  # of what is not [MASK]
        self._rng = rng

    def from_document(self, index: int) -> Iterator[Instance]:
        """Yields the instances of one document.

        Args:
          index: which document.
        """
        rng, rule, document = self._rng, self._pair_rule, self._documents[index]
        target = rule.max_num_tokens
        if rng.random() < rule.short_seq_prob:
            target = rng.randint(2, rule.max_num_tokens)

        begin = 0
        while begin < len(document):
            end, length = begin, 0
            while end < len(document) and length < target:
                length += len(document[end])
                end += 1
            count = end - begin
            a_count = rng.randint(1, count - 1) if count > 1 else 1
            middle = begin + a_count
            tokens_a = _join(document, begin, middle)
            is_random_next = count == 1 or rng.random() < 0.5
            if is_random_next:
                tokens_b = self._random_text(index, target - len(tokens_a))
                begin = middle  # sentences that were not used come again
            else:
                tokens_b = _join(document, middle, end)
                begin = end
            self._truncate(tokens_a, tokens_b)
            yield self._masked(tokens_a, tokens_b, is_random_next)

    def _random_text(self, index: int, target: int) -> list[int]:
        """Sentences from a random place of another document, about `target` tokens."""
        rng, documents = self._rng, self._documents
        other = index
        for _ in range(instances.MAX_RANDOM_DOCUMENT_TRIES):
            other = rng.randint(0, len(documents) - 1)
            if other != index:
                break
        document = documents[other]
        tokens: list[int] = []
        for number in range(rng.randint(0, len(document) - 1), len(document)):
            tokens.extend(document[number])
            if len(tokens) >= target:
                break
        return tokens

    def _truncate(self, tokens_a: list[int], tokens_b: list[int]) -> None:
        """Cuts the longer, token by token, at the front or the back by a fair coin."""
        while len(tokens_a) + len(tokens_b) > self._pair_rule.max_num_tokens:
            longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
            longer.pop(0 if self._rng.random() < 0.5 else -1)

    def _masked(self, tokens_a: list[int], tokens_b: list[int], is_random_next: bool) -> Instance:
        """Packs a pair and masks it."""
        rng, rule, special = self._rng, self._mask_rule, self._vocabulary
        ids = [special.cls_id, *tokens_a, special.sep_id, *tokens_b, special.sep_id]
        a_end = len(tokens_a) + 1
        candidates: list[list[int]] = []
        for position in range(1, len(ids) - 1):
            if position == a_end:
                continue
            if rule.whole_words and candidates and self._is_continuation[ids[position]]:
                candidates[-1].append(position)
            else:
                candidates.append([position])
        rng.shuffle(candidates)

        wanted = rule.num_to_predict(len(ids))
        masked = array.array("I", ids)
        chosen: list[int] = []
        for word in candidates:
            if len(chosen) >= wanted:
                break
            if len(chosen) + len(word) > wanted:
                continue
            for position in word:
                if rng.random() < rule.mask_prob:
                    masked[position] = special.mask_id
                elif rng.random() >= self._keep_share:
                    masked[position] = self._word_ids[rng.randint(0, len(self._word_ids) - 1)]
            chosen.extend(word)
        chosen.sort()
        return Instance(
            masked,
            a_end,
            array.array("I", chosen),
            array.array("I", [ids[position] for position in chosen]),
            is_random_next,
        )


def _join(document: Document, begin: int, end: int) -> list[int]:
    """Tokens of consecutive sentences."""
    return [token for sentence in document[begin:end] for token in sentence]
