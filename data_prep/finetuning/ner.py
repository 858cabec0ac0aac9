"""Named entity recognition: sentences of tagged words to windows of pieces, and tags back.

The first piece of each word carries its label, the others count for nothing (section 5.3 of the
paper; "Tokenization" in README.md of google-research/bert). No word is lost: one of which the
tokenizer makes nothing is [UNK], and a sentence longer than a window is read in several that
overlap, each word being labelled in the one that shows most around it.

Shape legend: N windows, L max_seq_length.
"""

import bisect
import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bert_tf.files import write_whole
from bert_tf.tasks.tag_schemes import OUTSIDE, TagScheme, check_tags, tag_scheme
from bert_tf.tokenization.vocabulary import (
    CLS_TOKEN,
    PAD_TOKEN,
    SEP_TOKEN,
    UNK_TOKEN,
    check_special_tokens,
)
from bert_tf.tokenization.wordpiece import FullTokenizer

DOCUMENT_START = "-DOCSTART-"
_WHITE_SPACE = re.compile(r"\s")
_CONLLEVAL_BOUNDARY = "-X-"  # as a first column, the end of a sentence


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words and their tags.

    Attributes:
        words: at least one.
        tags: as many; see `bert_tf.tasks.tag_schemes`.
        document: number of the document in its file, from 0.
        path: file.
        line: number of the first word's line, from 1.

    Raises:
        ValueError: no words, or another number of tags.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int = 0
    path: str = ""
    line: int = 0

    def __post_init__(self):
        if not self.words or len(self.words) != len(self.tags):
            raise ValueError(
                f"{self.location}: expected words and as many tags, "
                f"got {len(self.words)} words and {len(self.tags)} tags"
            )

    @property
    def location(self) -> str:
        """Where the sentence begins, "path, line n"."""
        return f"{self.path or 'sentence'}, line {self.line}"


# === Files ===


def read_sentences(
    path: str | os.PathLike[str],
    *,
    on_bad: Callable[[str], None] | None = None,
    token_column: int = 0,
    tag_column: int | None = -1,
    scheme: TagScheme | None = None,
) -> Iterator[Sentence]:
    """Read a file of one word a line with blank lines between sentences, as CoNLL-2003 has it.

    Columns are parted by tabs if the first line has one (words may then contain spaces), else by
    any number of spaces. Lines of white space alone are blank. A line whose first column is
    -DOCSTART- begins a document and is no sentence; a file without such lines is one document.

    Args:
        path: UTF-8 text, with or without a byte order mark, lines ending in LF or CRLF.
        on_bad: called with a message for each bad sentence, which is then left out; None to raise.
        token_column: column of the words, from 0, or from the end if negative.
        tag_column: column of the tags, likewise; None for a file without, whose words are all O.
        scheme: of all tags that there are (see `bert_tf.tasks.tag_schemes`); None (default) for
            those of this file alone.

    Yields:
        The sentences. Tags are kept as they are (see `TAG_SCHEMES`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line with another number of columns than the first, an empty word, a tag of
            unknown form, or bytes that are not UTF-8, unless on_bad takes it; in any case a file
            without one good sentence, or without the columns asked for.
    """
    path = os.fspath(path)
    columns: _Columns | None = None
    scheme = scheme or scheme_of(path, token_column, tag_column)
    document, seen_start = 0, False
    words: list[str] = []
    tags: list[str] = []
    first_line, bad, num_good = 0, False, 0

    with open(path, "rb") as lines:  # only \n ends a line here
        for number, line in enumerate(itertools.chain(lines, [b""]), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            ends = not line.strip(b" \t\r\n")
            starts_document = line.split(maxsplit=1)[:1] == [DOCUMENT_START.encode()]
            if ends or starts_document:
                if words and not bad:
                    yield Sentence(tuple(words), tuple(tags), document, path, first_line)
                    num_good += 1
                words, tags, first_line, bad = [], [], 0, False
                if starts_document:
                    # The first such line begins the first document, if nothing stands before it.
                    document += bool(seen_start or num_good)
                    seen_start = True
                continue
            first_line = first_line or number
            if bad:
                continue
            try:
                text = line.decode("utf-8").rstrip("\r\n")
                columns = columns or _Columns(text, token_column, tag_column)
                word, tag = columns.split(text)
                if tag_column is not None:
                    scheme.read(tag)
            except LookupError as error:  # all lines lack the column, not this one
                raise ValueError(f"{path}, line {number}: {error}") from None
            except UnicodeDecodeError as error:
                message = f"{path}, line {number}: not UTF-8: {error}"
            except ValueError as error:
                message = f"{path}, line {number}: {error}"
            else:
                words.append(word)
                tags.append(tag)
                continue
            if on_bad is None:
                raise ValueError(message)
            on_bad(message)
            bad = True
    if not num_good:
        raise ValueError(
            f"{path}: expected lines of a word and its tag, "
            + ("got no sentence without errors" if columns else "got none")
        )


def _lines_of_words(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the lines of a file that are neither blank nor begin a document."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines):
            line = line if number else line.removeprefix(b"\xef\xbb\xbf")
            starts_document = line.split(maxsplit=1)[:1] == [DOCUMENT_START.encode()]
            if line.strip(b" \t\r\n") and not starts_document:
                yield line.rstrip(b"\r\n")


def tags_in(
    path: str | os.PathLike[str], token_column: int = 0, tag_column: int | None = -1
) -> set[str]:
    """Return the distinct tags of a file, as far as its lines can be read.

    Args:
        path: as for `read_sentences`.
        token_column: likewise.
        tag_column: likewise.
    """
    tags: set[str] = set()
    if tag_column is None:
        return tags
    columns = None
    for line in _lines_of_words(path):
        with contextlib.suppress(ValueError, LookupError):
            text = line.decode("utf-8")
            columns = columns or _Columns(text, token_column, tag_column)
            tags.add(columns.split(text)[1])
    return tags


def scheme_of(
    path: str | os.PathLike[str], token_column: int = 0, tag_column: int | None = -1
) -> TagScheme:
    """Return the scheme that the tags of a file alone show; see `tags_in`."""
    return tag_scheme(tags_in(path, token_column, tag_column))


def has_tags(
    path: str | os.PathLike[str], token_column: int = 0, tag_column: int | None = -1
) -> bool:
    """Tell by its first word whether a file has a column of tags.

    Args:
        path: as for `read_sentences`.
        token_column: likewise.
        tag_column: likewise.

    Returns:
        False where the lines have no such column, or no other than that of the words.
    """
    for line in _lines_of_words(path):
        try:
            _Columns(line.decode("utf-8", "replace"), token_column, tag_column)
        except LookupError:
            return False
        return True
    return True  # an empty file is for the reader to refuse


class _Columns:
    """How the lines of one file fall into columns, as its first line shows.

    Raises:
        LookupError: a column asked for is not there.
    """

    def __init__(self, line: str, token_column: int, tag_column: int | None):
        self.tabs = "\t" in line
        self.count = len(self._columns(line))
        self.token = token_column + self.count if token_column < 0 else token_column
        self.tag = tag_column
        if tag_column is None:
            if not 0 <= self.token < self.count:
                raise LookupError(
                    f"expected column {token_column} (words), "
                    f"got {self.count} columns parted by {self._separator}"
                )
            return
        self.tag = tag_column + self.count if tag_column < 0 else tag_column
        if not (0 <= self.token < self.count and 0 <= self.tag < self.count):
            raise LookupError(
                f"expected columns {token_column} (words) and {tag_column} (tags), "
                f"got {self.count} columns parted by {self._separator}"
            )
        if self.token == self.tag:
            raise LookupError(
                "expected a column of words and another of tags, "
                f"got {self.count} parted by {self._separator}"
            )

    def split(self, line: str) -> tuple[str, str]:
        """Return word and tag of a line."""
        columns = self._columns(line)
        if len(columns) != self.count:
            raise ValueError(
                f"expected {self.count} columns parted by {self._separator} as in the first line, "
                f"got {len(columns)}"
            )
        word = columns[self.token]
        tag = OUTSIDE if self.tag is None else columns[self.tag]
        if not word:
            raise ValueError("expected a word, got an empty column")
        return word, tag

    @property
    def _separator(self) -> str:
        return "tabs" if self.tabs else "spaces"

    def _columns(self, line: str) -> list[str]:
        # Other white space parts nothing: words may contain it or consist of it.
        if self.tabs:
            return [column.strip(" ") for column in line.split("\t")]
        return [column for column in line.split(" ") if column]


def write_conll(
    path: str | os.PathLike[str],
    sentences: Sequence[Sentence],
    predicted: Sequence[Sequence[str]],
    *,
    with_true: bool = True,
) -> None:
    """Write words, true tags and predicted tags in three columns, as conlleval reads them.

    Columns are parted by a space. White space in a word becomes "_", and so does the word -X-,
    which conlleval takes for the end of a sentence. Documents are not marked, since conlleval
    would count their lines as words.

    Args:
        path: file to write, UTF-8.
        sentences: the sentences.
        predicted: the predicted tags of each.
        with_true: whether true tags are known; without them there are two columns.

    Raises:
        ValueError: another number of sentences or tags.
    """
    if len(sentences) != len(predicted):
        raise ValueError(
            f"predicted: expected the tags of {len(sentences)} sentences, got {len(predicted)}"
        )
    for sentence, tags in zip(sentences, predicted, strict=True):
        if len(tags) != len(sentence.words):
            raise ValueError(
                f"{sentence.location}: expected {len(sentence.words)} predicted tags, "
                f"got {len(tags)}"
            )
    with write_whole(path, "w") as writer:
        for sentence, tags in zip(sentences, predicted, strict=True):
            for word, true, tag in zip(sentence.words, sentence.tags, tags, strict=True):
                word = "_" if word == _CONLLEVAL_BOUNDARY else _WHITE_SPACE.sub("_", word)
                writer.write(f"{word} {true} {tag}\n" if with_true else f"{word} {tag}\n")
            writer.write("\n")


# === Tags ===


def label_names(sentences: Iterable[Sentence]) -> list[str]:
    """Return the distinct tags, sorted, with O in front.

    O is one whether it occurs or not, but where each word is a chunk, as of parts of speech.

    Args:
        sentences: of all files that are to be trained on and evaluated.

    Returns:
        The labels; a label's index is its id.

    Raises:
        ValueError: tags that do not go together.
    """
    tags = {tag for sentence in sentences for tag in sentence.tags}
    names = sorted(tags - {OUTSIDE})
    return names if check_tags(tags, "tags").kind == "words" else [OUTSIDE, *names]


def to_bio(tags: Sequence[str], scheme: TagScheme | None = None) -> tuple[str, ...]:
    """Return one sentence's tags with B- on the first word of each entity and I- on the others.

    The entities stay the ones that conlleval finds (see `bert_tf.tasks.entity_metrics.chunks`),
    in IOB1, where B- only parts neighbours of one type, as in IOBES and BILOU.

    Args:
        tags: of one sentence.
        scheme: of all tags that there are; None (default) where these show it.

    Returns:
        As many tags, each O, or B- or I- and a type (IOB2).

    Raises:
        ValueError: a tag of another form.
    """
    converted = []
    last_form, last_name = OUTSIDE, ""
    scheme = scheme or tag_scheme(tags)
    for tag in tags:
        form, name = scheme.read(tag)
        begins = form in "BS" or last_form in "OES" or name != last_name
        converted.append(OUTSIDE if form == OUTSIDE else ("B-" if begins else "I-") + name)
        last_form, last_name = form, name
    return tuple(converted)


# (tags of a sentence, the scheme of all) -> as many tags.
TAG_SCHEMES: dict[str, Callable[..., tuple[str, ...]]] = {
    "original": lambda tags, scheme=None: tuple(tags),
    "bio": to_bio,
}


# === Windows ===


@dataclasses.dataclass(frozen=True)
class SentenceWindow:
    """One input of the model.

    Attributes:
        input_ids: [CLS], pieces of words, [SEP]; not padded.
        words: of each word that counts in this window: index of its sentence, index of the word in
            it, position of its first piece in the window. In order.
    """

    input_ids: tuple[int, ...]
    words: tuple[tuple[int, int, int], ...]


def sentence_windows(
    sentences: Sequence[Sentence],
    tokenizer: FullTokenizer,
    max_seq_length: int,
    document_context: bool = False,
) -> list[SentenceWindow]:
    """Cut sentences into windows such that each word counts in exactly one.

    A sentence that fits has one window, and only words of this sentence count there. A longer one
    has several, each half a window after the one before, and every word counts in the one that
    shows most on the side where it shows less, as windows of SQuAD are chosen. Words are not
    parted, but for one whose pieces do not fit into a window by themselves: it shows only its
    first pieces.

    Args:
        sentences: in the order of the file. Neighbours of one path and document number are taken to
            be one document.
        tokenizer: cased or not, as the model is.
        max_seq_length: L, at least 3.
        document_context: fill each window, on both sides alike as far as there is text, with the
            words around the sentence in its document; they do not count.

    Returns:
        The windows, in the order of the sentences.

    Raises:
        ValueError: max_seq_length is too small, or the vocabulary lacks a special token.

    Reference: google-research/bert run_squad.py, _check_is_max_context, for the choice of windows;
    "maximal document context" of section 5.3 of the paper.
    """
    if max_seq_length < 3:
        raise ValueError(f"max_seq_length must be at least 3, got {max_seq_length}")
    check_special_tokens(tokenizer.vocab, tokenizer.vocab_file)
    room = max_seq_length - 2
    cls_id, sep_id, unk_id = tokenizer.convert_tokens_to_ids([CLS_TOKEN, SEP_TOKEN, UNK_TOKEN])
    windows = []
    index = 0
    for document in documents(sentences) if document_context else ([s] for s in sentences):
        pieces: list[int] = []  # of the document's words
        offsets = [0]  # where each word begins in them
        for sentence in document:
            for word in sentence.words:
                # One such as U+FEFF vanishes in cleaning, but a tag is wanted all the same.
                pieces += tokenizer.encode(word)[:room] or [unk_id]
                offsets.append(len(pieces))
        first = 0  # word of the document
        for sentence in document:
            last = first + len(sentence.words)
            for (start, end), (low, high) in _spans(offsets, first, last, room):
                base = offsets[start] - 1  # position 0 is [CLS]
                windows.append(
                    SentenceWindow(
                        (cls_id, *pieces[offsets[start] : offsets[end]], sep_id),
                        tuple((index, w - first, offsets[w] - base) for w in range(low, high)),
                    )
                )
            first = last
            index += 1
    return windows


def documents(sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    """Group neighbouring sentences of one document; chunks of whole documents keep all context.

    Args:
        sentences: in the order of their files.

    Yields:
        The sentences of each document.
    """
    for _, group in itertools.groupby(sentences, key=lambda s: (s.path, s.document)):
        yield list(group)


def _spans(
    offsets: Sequence[int], first: int, last: int, room: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the windows of one sentence, the words [first, last) of a text.

    Args:
        offsets: pieces before each word of the text, and at last all its pieces. Words outside the
            sentence may be shown.
        first: the sentence's first word.
        last: the word after its last.
        room: pieces of a window; no word has more.

    Yields:
        Of each window (start, end), the words it shows, and (low, high), the words that count.
    """
    spare = room - (offsets[last] - offsets[first])
    if spare >= 0:
        start = _reach_back(offsets, first, spare // 2)
        end = _reach_on(offsets, last, room - (offsets[last] - offsets[start]))
        start = _reach_back(offsets, first, room - (offsets[end] - offsets[first]))
        yield (start, end), (first, last)
        return
    # With a quarter of a window around the sentence, its first and last words lie as deep in
    # their windows as those between.
    low = _reach_back(offsets, first, room // 4)
    high = _reach_on(offsets, last, room // 4)
    shown = []
    start = low
    while True:
        end = _reach_on(offsets, start, room)
        if end >= high:
            shown.append((_reach_back(offsets, high, room, low), high))
            break
        shown.append((start, end))
        start = max(_reach_on(offsets, start, room // 2), start + 1)
    choices = itertools.groupby(
        range(first, last), key=lambda word: _most_context(offsets, shown, word)
    )
    for window, group in choices:
        words = list(group)
        yield window, (words[0], words[-1] + 1)


def _reach_back(offsets: Sequence[int], word: int, pieces: int, lowest: int = 0) -> int:
    """Return the first word from which on the words before `word` have at most so many pieces."""
    return bisect.bisect_left(offsets, offsets[word] - pieces, lowest, word)


def _reach_on(offsets: Sequence[int], word: int, pieces: int) -> int:
    """Last word before which the words from `word` on have at most so many pieces."""
    return bisect.bisect_right(offsets, offsets[word] + pieces, word) - 1


def _most_context(
    offsets: Sequence[int], shown: Sequence[tuple[int, int]], word: int
) -> tuple[int, int]:
    """Return the window that shows most on the poorer side of a word; of equals the first."""
    # Both starts and ends rise from window to window.
    low = bisect.bisect_right(shown, word, key=lambda window: window[1])
    high = bisect.bisect_right(shown, word, key=lambda window: window[0])

    def score(window: tuple[int, int]) -> int:
        start, end = window
        left, right = offsets[word] - offsets[start], offsets[end] - offsets[word + 1]
        return 100 * min(left, right) + offsets[end] - offsets[start]

    return max(shown[low:high], key=score)


def make_features(
    sentences: Sequence[Sentence],
    tokenizer: FullTokenizer,
    labels: Sequence[str],
    max_seq_length: int,
    document_context: bool = False,
) -> tuple[dict[str, np.ndarray], list[SentenceWindow]]:
    """Make records of sentences, one of each window.

    Args:
        sentences: a chunk of sentences; with document_context, of whole documents.
        tokenizer: cased or not, as the model is.
        labels: names of the labels, in order of their ids.
        max_seq_length: L, at least 3.
        document_context: show the words around each sentence.

    Returns:
        Arrays for `records.token_classification_features`, int32 [N, L] each: input_ids;
        input_mask, 1 on what is not padding; segment_ids, 0; label_ids, on the first pieces of the
        words that count, 0 elsewhere; label_mask, 1 on those. And the N windows, which
        `collect_tags` needs; `sentence_windows` makes the same of the same arguments.

    Raises:
        ValueError: as for `sentence_windows`; labels that are not distinct; a tag that is not among
            them, naming the sentence.
    """
    label_id = {label: i for i, label in enumerate(labels)}
    if len(label_id) != len(labels):
        raise ValueError(f"labels: expected distinct names, got {' '.join(labels)}")
    windows = sentence_windows(sentences, tokenizer, max_seq_length, document_context)
    shape = (len(windows), max_seq_length)
    input_ids = np.full(shape, tokenizer.vocab[PAD_TOKEN], np.int32)
    input_mask, segment_ids, label_ids, label_mask = (np.zeros(shape, np.int32) for _ in range(4))
    for row, window in enumerate(windows):
        input_ids[row, : len(window.input_ids)] = window.input_ids
        input_mask[row, : len(window.input_ids)] = 1
        for index, word, position in window.words:
            sentence = sentences[index]
            tag = sentence.tags[word]
            if tag not in label_id:
                raise ValueError(
                    f"{sentence.location}: expected one of the labels {' '.join(labels)}, "
                    f"got {tag!r} for word {word}, {sentence.words[word]!r}"
                )
            label_ids[row, position] = label_id[tag]
            label_mask[row, position] = 1
    return {
        "input_ids": input_ids,
        "input_mask": input_mask,
        "segment_ids": segment_ids,
        "label_ids": label_ids,
        "label_mask": label_mask,
    }, windows


def collect_tags(
    windows: Sequence[SentenceWindow], predicted_ids: np.ndarray, labels: Sequence[str]
) -> list[list[str]]:
    """Map predictions of windows back to the words.

    Args:
        windows: all windows of some sentences, as `sentence_windows` made them.
        predicted_ids: integers [N, L], a label id at every position; only those of words that count
            are looked at.
        labels: names of the labels, in order of their ids.

    Returns:
        For each sentence the predicted tags of its words.

    Raises:
        ValueError: another number of rows, an id that is none of a label, or windows in which not
            every word counts once.
    """
    predicted_ids = np.asarray(predicted_ids)
    if predicted_ids.ndim != 2 or len(predicted_ids) != len(windows):
        raise ValueError(
            f"predicted_ids: expected shape [{len(windows)}, L], got {list(predicted_ids.shape)}"
        )
    sentences: list[list[str]] = []
    for row, window in zip(predicted_ids.tolist(), windows, strict=True):
        for index, word, position in window.words:
            if index == len(sentences):
                sentences.append([])
            if index != len(sentences) - 1 or word != len(sentences[-1]):
                raise ValueError(
                    "windows: expected each word once and in order, "
                    f"got word {word} of sentence {index} too early, again or too late"
                )
            label_id = int(row[position])
            if not 0 <= label_id < len(labels):
                raise ValueError(
                    f"predicted_ids: expected ids below {len(labels)}, got {label_id} "
                    f"for word {word} of sentence {index}"
                )
            sentences[-1].append(labels[label_id])
    return sentences
