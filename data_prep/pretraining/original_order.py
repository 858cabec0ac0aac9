"""Pre-training instances exactly as google-research/bert draws them, draw by draw.

For `--compatible`: with the same text, flags and seed the instances, and their order, are those of
the original script. Everything is in memory and one document comes after the other, as there,
since each draw of the one generator depends on all before. `instances.py` draws the same
distribution in bulk.

Ids stand for the original's pieces: a vocabulary maps distinct pieces to distinct ids.
"""

import array
import collections
import contextlib
import dataclasses
import random
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bert_tf.files import move
from bert_tf.records.encoding import encode_examples
from bert_tf.records.files import RecordWriter
from bert_tf.tokenization.vocabulary import casing_of
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import text_files
from data_prep.pretraining import instances, token_store, units
from data_prep.pretraining.manifest import Statistics, held_step, make_manifest
from data_prep.pretraining.options import Options, warn_about_corpus, warn_user
from data_prep.pretraining.stages import word_marker
from data_prep.pretraining.work_folder import output_bytes, output_part_path
from data_prep.processes.progress import Progress

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
        tokens: Sequence[int] | None = None,
    ):
        """Keep what all draws need.

        Args:
            documents: all documents in the order in which they are worked through, none empty.
            pair_rule: how pairs are cut.
            mask_rule: how tokens are masked.
            vocabulary: ids of the special tokens and of the random replacements.
            rng: the one generator, in the state after the documents were shuffled.
            tokens: ids of the corpus, where the documents hold places in it instead of ids; `held`
                then tells for each place whether an instance has its token.
        """
        self._tokens = tokens
        self.held = bytearray(0 if tokens is None else len(tokens))
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
        """Yield the instances of one document.

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
        """Return sentences from a random place of another document, about `target` tokens."""
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
        """Cut the longer, token by token, at the front or the back by a fair coin."""
        while len(tokens_a) + len(tokens_b) > self._pair_rule.max_num_tokens:
            longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
            longer.pop(0 if self._rng.random() < 0.5 else -1)

    def _masked(self, tokens_a: list[int], tokens_b: list[int], is_random_next: bool) -> Instance:
        """Pack a pair and mask it."""
        rng, rule, special = self._rng, self._mask_rule, self._vocabulary
        ids_a, ids_b = map(self._look_up, (tokens_a, tokens_b))
        ids = [special.cls_id, *ids_a, special.sep_id, *ids_b, special.sep_id]
        a_end = len(tokens_a) + 1
        candidates: list[list[int]] = []
        for position in range(1, len(ids) - 1):
            if position == a_end:
                continue
            if rule.whole_words and candidates and self._is_continuation[ids[position]]:
                candidates[-1].append(position)
            else:
                candidates.append([position])
        if special.mark_offset:
            ids = [i % special.mark_offset for i in ids]
        rng.shuffle(candidates)

        num_masked = rule.num_to_predict(len(ids))
        masked = array.array("I", ids)
        chosen: list[int] = []
        for word in candidates:
            if len(chosen) >= num_masked:
                break
            if len(chosen) + len(word) > num_masked:
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

    def _look_up(self, places: list[int]) -> Sequence[int]:
        """Return the ids of neighbouring places, and mark these as held; ids stay as they are."""
        if self._tokens is None:
            return places
        start, end = places[0], places[-1] + 1
        self.held[start:end] = b"\1" * (end - start)
        return self._tokens[start:end]


def _join(document: Document, begin: int, end: int) -> list[int]:
    """Return the tokens of consecutive sentences."""
    return [token for sentence in document[begin:end] for token in sentence]


def compatible_run(
    options: Options, tokenizer: FullTokenizer, work: str, show: bool
) -> dict[str, Any]:
    """Make the original's records: everything in memory, one generator for all draws."""
    _allow_open_files(len(options.output_files))
    documents, tokens, counts = _read_documents(options, tokenizer, show)
    warn_about_corpus(options, counts)
    rng = random.Random(options.random_seed)
    rng.shuffle(documents)
    maker = InstanceMaker(
        documents,
        options.pair_rule,
        options.mask_rule,
        instances.VocabularyTable.from_vocab(tokenizer.vocab, options.word_list is not None),
        rng,
        tokens,
    )
    sequences: list[Instance] = []
    total = len(documents) * options.dupe_factor
    with Progress("2/3 drawing instances", total, "document", show=show) as progress:
        for _ in range(options.dupe_factor):
            for index in range(len(documents)):
                sequences.extend(maker.from_document(index))
                progress.update(1)
    rng.shuffle(sequences)

    statistics = Statistics()
    statistics.held = np.frombuffer(maker.held, np.bool_)[:: held_step(len(tokens))]
    files = len(options.output_files)
    dtype = token_store.token_dtype(tokenizer.vocab)
    batch = max(1, units.BATCH_TOKENS // options.max_seq_length)
    with (
        contextlib.ExitStack() as stack,
        Progress("3/3 writing records", len(sequences), "record", show=show) as progress,
    ):
        writers = [
            stack.enter_context(
                RecordWriter(
                    output_part_path(work, index), "gzip" if path.endswith(".gz") else None
                )
            )
            for index, path in enumerate(options.output_files)
        ]
        for start in range(0, len(sequences), batch):
            arrays, length = _instance_arrays(sequences[start : start + batch], options, dtype)
            statistics.add(arrays, length)
            for row, record in enumerate(encode_examples(options.features, arrays)):
                writers[(start + row) % files].write(record)
            progress.update(len(length))
    manifest = make_manifest(options, counts, statistics, output_bytes(options, work))
    for index, path in enumerate(options.output_files):
        move(output_part_path(work, index), path)
    return manifest


def _allow_open_files(count: int) -> None:
    """Let this process have so many output files open, all of which are written at once.

    Raises:
        ValueError: the system does not allow it.
    """
    needed = count + 64  # and what is open beside them
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            "num_shards: with compatible all files are written at once, and this process may have "
            f"{hard} open (ulimit -Hn); expected at most {hard - 64} shards, got {count}"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _read_documents(
    options: Options, tokenizer: FullTokenizer, show: bool
) -> tuple[list[list[range]], array.array, dict[str, int]]:
    """Tokenize all documents into memory.

    Returns:
        The documents, whose sentences are ranges of the tokens; all tokens; the counts.
    """
    if not options.do_lower_case and casing_of(tokenizer.vocab) == "uncased":
        warn_user(
            f"vocabulary {options.vocab_file} has no upper-case letters and do_lower_case is not "
            "set: every word with a capital becomes [UNK]"
        )
    documents: list[list[range]] = [[]]
    tokens = array.array("I")
    counts = collections.Counter[str]()
    total = sum(map(text_files.input_bytes, options.input_files))
    marker = word_marker(options, tokenizer)
    with Progress("1/3 tokenizing", total, "B", show=show) as progress:
        for piece in text_files.text_pieces(options.input_files, text_files.PIECE_BYTES):
            tokenized = token_store.tokenize_piece(piece, tokenizer, False, marker)
            starts = set(tokenized.document_starts.tolist())
            end = len(tokens)
            tokens.extend(tokenized.tokens.tolist())
            lengths = tokenized.sentence_lengths.tolist()
            for number, length in enumerate(lengths):
                if number in starts:
                    documents.append([])
                documents[-1].append(range(end, end + length))
                end += length
            if len(lengths) in starts:
                documents.append([])
            counts["sentences"] += len(lengths)
            for name in ("unknown_tokens", *token_store.CHARACTER_COUNTS):
                counts[name] += getattr(tokenized, name)
            progress.update(piece.file_bytes)
    documents = [document for document in documents if document]
    counts["documents"], counts["tokens"] = len(documents), len(tokens)
    return documents, tokens, counts


def _instance_arrays(
    sequences: Sequence[Instance], options: Options, dtype: np.dtype
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pad instances to the arrays of their records; also return their lengths, int64 [B]."""
    rows = len(sequences)
    shape = (rows, options.max_predictions_per_seq)
    input_ids = np.zeros((rows, options.max_seq_length), dtype)
    positions, labels = np.zeros(shape, np.uint32), np.zeros(shape, dtype)
    weights = np.zeros(shape, np.float32)
    for row, instance in enumerate(sequences):
        input_ids[row, : len(instance.ids)] = instance.ids
        count = len(instance.positions)
        positions[row, :count] = instance.positions
        labels[row, :count] = instance.labels
        weights[row, :count] = 1
    packed = instances.PackedPairs(
        input_ids,
        np.array([instance.a_end for instance in sequences]),
        np.array([len(instance.ids) for instance in sequences]),
        np.array([instance.is_random_next for instance in sequences]),
    )
    arrays = {
        **packed.features(),
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "masked_lm_weights": weights,
    }
    return arrays, packed.length
