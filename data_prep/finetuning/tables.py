"""One's own data for classification and regression: CSV, TSV and JSONL with columns one names.

Each row is an example: one text or two, and a label, a number, or several labels. The labels of a
task are those of its training file unless they are given: sorted, integers by value, so that the
same file always gives the same order.
"""

import contextlib
import csv
import dataclasses
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bert_tf.options import option
from bert_tf.tasks.kinds import get_kind
from data_prep.finetuning.glue import OnBad, TextExample, parse_number, refuse

Format = Literal["csv", "tsv", "jsonl"]
FORMATS = ("csv", "tsv", "jsonl")
_EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_MAX_FIELD_CHARS = 2**31 - 1  # the csv module's own limit is 131,072; this is the greatest it takes
_BOM = "\ufeff"
_LABELS_SHOWN = 20  # with their counts
_YES = {"1", "1.0", "true"}
_NO = {"0", "0.0", "false"}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of one's own table mean what.

    Raises:
        ValueError: settings that cannot be.
    """

    text: str = option(
        None, "Column of the text, or of a pair's first text.", flag="text_column", group="data"
    )
    text_b: str | None = option(None, "Column of a pair's second text.", flag="text_b_column")
    # Empty where labels are not known.
    label: tuple[str, ...] = option(
        (), "Column of the label; for multi_label also several, of 0 and 1.", flag="label_column"
    )
    separator: str = option(
        "|", "What separates labels in one column, for multi_label.", flag="label_separator"
    )
    # It becomes a part of `guid`, for which else the line stands.
    id: str | None = option(None, "Column with a name for each row.", flag="id_column")
    file_format: Format | None = option(
        None, "Format of your own tables. Default: by the file's extension.", choices=FORMATS
    )
    has_header: bool = option(True, "The first row names the columns; else they are 0, 1, ...")
    quotes: bool | None = option(
        None, 'Whether "..." may hold separators and line ends. Default: in CSV yes, in TSV no.'
    )

    def __post_init__(self):
        if not self.separator:
            raise ValueError("separator: expected at least one character, got ''")
        if self.file_format is not None and self.file_format not in FORMATS:
            raise ValueError(
                f"file_format must be one of {', '.join(FORMATS)}; got {self.file_format!r}"
            )
        if len(set(self.label)) < len(self.label):
            raise ValueError(f"label: columns must be distinct, got {', '.join(self.label)}")
        texts = [column for column in (self.text, self.text_b) if column is not None]
        if len(set(texts)) < len(texts) or set(texts) & set(self.label):
            raise ValueError(
                f"columns must be distinct: text {self.text!r}, text_b {self.text_b!r}, "
                f"label {', '.join(map(repr, self.label))}"
            )

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a file must have."""
        return tuple(c for c in (self.text, self.text_b, *self.label, self.id) if c is not None)


# === Rows ===


def format_of(path: str | os.PathLike[str], columns: Columns) -> Format:
    """Tell a file's format.

    Args:
        path: the file.
        columns: its `file_format` comes first, then the file's extension.

    Raises:
        ValueError: the extension says nothing.
    """
    if columns.file_format is not None:
        return columns.file_format
    extension = os.path.splitext(path)[1].lower()
    if extension not in _EXTENSIONS:
        raise ValueError(
            f"{os.fspath(path)}: expected a name ending in {', '.join(_EXTENSIONS)}, or the "
            f"format to be given ({', '.join(FORMATS)})"
        )
    return _EXTENSIONS[extension]  # type: ignore[return-value]


class TextLines:
    """Lines of a UTF-8 file with their ends; remembers those that were not UTF-8.

    A generator that raised could not go on with the next line. Here the bad bytes become surrogates
    and `bad` says so, for whoever reads the row to refuse it.

    Attributes:
        number: of the last line, from 1.
        bad: message on a line that was not UTF-8, or "".
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._stream = open(path, "rb")
        self.number = 0
        self.bad = ""

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.bad = f"not UTF-8: {error}"
            text = line.decode("utf-8", "surrogateescape")
        return text.removeprefix(_BOM) if self.number == 1 else text

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stream.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        values: for each column its value: str, or what JSON had.
        line: the line of the file on which the row begins.
        error: why the row cannot be read, or "".
    """

    values: Mapping[str, Any]
    line: int
    error: str = ""


def read_delimited(
    path: str | os.PathLike[str],
    needed: Sequence[str],
    delimiter: str = ",",
    quotes: bool = True,
    has_header: bool = True,
) -> Iterator[Row]:
    """Read the rows of a CSV or TSV file; empty lines are no rows.

    Args:
        path: UTF-8, with or without a byte order mark; lines end with or without a carriage return.
        needed: columns that must be there.
        delimiter: what separates fields.
        quotes: whether "..." may hold delimiters and line ends.
        has_header: whether the first row names the columns; without, they are "0", "1", ...

    Yields:
        The rows in order; one that cannot be read has its `error` set.

    Raises:
        ValueError: an empty file, or one that lacks a column, naming the file.
        OSError: the file cannot be read.
    """
    # The limit belongs to the whole process, so putting it back would trip other open readers.
    csv.field_size_limit(_MAX_FIELD_CHARS)
    names: list[str] = []
    with TextLines(path) as lines:
        reader = csv.reader(
            lines,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            strict=True,  # else text after a closing quote, or a quote never closed, goes unnoticed
        )
        while True:
            line, lines.bad, error = lines.number + 1, "", ""
            fields: list[str] = []
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as problem:
                error = f"not a row of CSV: {problem}"
                if lines.number > line:
                    error += f" (a quote opened here reaches to line {lines.number})"
            error = lines.bad or error
            if not fields and not error:
                continue
            if not names:
                if error:
                    raise ValueError(f"{os.fspath(path)}, line {line}: {error}")
                names = [str(i) for i in range(len(fields))]
                if has_header:
                    names = [name.strip() for name in fields]
                _check_columns(path, line, names, needed)
                if has_header:
                    continue
            if not error and len(fields) != len(names):
                error = f"expected {len(names)} columns, got {len(fields)}"
            yield Row({} if error else dict(zip(names, fields, strict=True)), line, error)
    if not names:
        raise ValueError(f"{os.fspath(path)}: the file is empty")


def _check_columns(
    path: str | os.PathLike[str], line: int, names: Sequence[str], needed: Sequence[str]
) -> None:
    where = f"{os.fspath(path)}, line {line}"
    for name in needed:
        if name not in names:
            raise ValueError(f"{where}: no column {name!r}; the file has {', '.join(names)}")
        if names.count(name) > 1:
            raise ValueError(f"{where}: column {name!r} stands twice in the header")


def read_json_lines(path: str | os.PathLike[str], needed: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a JSONL file: an object a line; empty lines are no rows.

    Args:
        path: UTF-8, with or without a byte order mark.
        needed: keys that each object must have.

    Yields:
        The rows in order; one that cannot be read has its `error` set.

    Raises:
        ValueError: an empty file, or a key that no row has, naming the file.
        OSError: the file cannot be read.
    """
    keys: set[str] = set()
    rows = 0
    with TextLines(path) as lines:
        for text in lines:
            values: Any = None
            error, lines.bad = lines.bad, ""
            if not text.strip():
                continue
            rows += 1
            if not error:
                try:
                    values = json.loads(text)
                except (ValueError, RecursionError) as problem:
                    error = f"not JSON: {problem}"
            if not error and not isinstance(values, dict):
                error = f"expected a JSON object, got {type(values).__name__}"
            if not error:
                keys |= values.keys()
                missing = [name for name in needed if name not in values]
                if missing:
                    error = f"no key {missing[0]!r}; the row has {', '.join(values) or 'none'}"
            yield Row({} if error else values, lines.number, error)
    if not rows:
        raise ValueError(f"{os.fspath(path)}: the file is empty")
    missing = [name for name in needed if name not in keys]
    if missing:
        raise ValueError(f"{os.fspath(path)}: no row has the key {missing[0]!r}")


def read_rows(
    path: str | os.PathLike[str], columns: Columns, others: Sequence[str] = ()
) -> Iterator[Row]:
    """Read the rows of a table of any format; see `read_delimited` and `read_json_lines`.

    Args:
        path: CSV, TSV or JSONL, UTF-8.
        columns: which columns mean what.
        others: further columns that must be there.
    """
    file_format, needed = format_of(path, columns), (*columns.needed, *others)
    if file_format == "jsonl":
        return read_json_lines(path, needed)
    quotes = file_format == "csv" if columns.quotes is None else columns.quotes
    delimiter = "," if file_format == "csv" else "\t"
    return read_delimited(path, needed, delimiter, quotes, columns.has_header)


def has_labels(path: str | os.PathLike[str], columns: Columns) -> bool:
    """Tell whether a file has the label columns: test files may lack them.

    Args:
        path: the file.
        columns: which columns mean what.

    Returns:
        True if there are label columns and the file's header (of JSONL, its first row) has all.

    Raises:
        ValueError: the file is empty, or its first row cannot be read.
    """
    without = dataclasses.replace(columns, label=())
    first = next(read_rows(path, without), None)
    if first is None:
        raise ValueError(f"{os.fspath(path)}: no examples: the file has but a header")
    if first.error:
        raise ValueError(f"{os.fspath(path)}, line {first.line}: {first.error}")
    return bool(columns.label) and all(name in first.values for name in columns.label)


# === Examples ===


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values[column]
    if not isinstance(value, str):
        raise ValueError(f"column {column!r}: expected text, got {type(value).__name__}")
    return value


def _label_name(column: str, value: Any) -> str:
    """Return a label's name; JSON may have it as a number or truth value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        got = repr(value) if isinstance(value, float) else type(value).__name__
        raise ValueError(f"column {column!r}: expected a label as text or whole number, got {got}")
    name = value.strip()
    if not name:
        raise ValueError(f"column {column!r}: expected a label, got none")
    return name


def _flag(column: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _YES | _NO:
        raise ValueError(f"column {column!r}: expected 0 or 1, got {value!r}")
    return text in _YES


def _multi_label(values: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    column, *others = columns.label
    if others:
        return tuple(name for name in columns.label if _flag(name, values[name]))
    value = values[column]
    if isinstance(value, list):
        names = [_label_name(column, item) for item in value]
    elif isinstance(value, str):
        names = [name.strip() for name in value.split(columns.separator)] if value.strip() else []
        if "" in names:
            raise ValueError(
                f"column {column!r}: expected names between {columns.separator!r}, got {value!r}"
            )
    else:
        names = [_label_name(column, value)]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"column {column!r}: label {repeated[0]!r} stands twice")
    return tuple(names)


def _label(values: Mapping[str, Any], columns: Columns, kind: str) -> Any:
    if not columns.label:
        return None
    if kind == "multi_label":
        return _multi_label(values, columns)
    value = values[columns.label[0]]
    if kind == "regression":
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(
                f"column {columns.label[0]!r}: expected a number, got {type(value).__name__}"
            )
        return parse_number(str(value))
    return _label_name(columns.label[0], value)


def _check_kind(columns: Columns, kind: str) -> None:
    if kind not in ("classification", "regression", "multi_label"):
        raise ValueError(f"kind must be classification, regression or multi_label; got {kind!r}")
    if get_kind(kind).labels != "row" and len(columns.label) > 1:
        raise ValueError(
            f"label: {kind} has one column, got {', '.join(columns.label)}; several, of 0 and 1, "
            "are for multi_label"
        )


def read_examples(
    path: str | os.PathLike[str],
    columns: Columns,
    kind: str,
    labels: Sequence[str] | None = None,
    split: str = "train",
    on_bad: OnBad = None,
) -> Iterator[TextExample]:
    """Read a table's rows as examples, one by one.

    Args:
        path: CSV, TSV or JSONL, UTF-8.
        columns: which columns mean what.
        kind: "classification", "regression" or "multi_label".
        labels: the task's labels, to refuse others; None to accept any.
        split: first part of `guid`.
        on_bad: what to do with the message of a bad row; None to raise it.

    Yields:
        The examples in order; `label` is a name, a float, or for multi_label a tuple of names.

    Raises:
        ValueError: a bad row (columns too few or many, not UTF-8, a quote that is not closed, an
            unknown or missing label), naming file and line, unless on_bad takes it; always for an
            empty file or one without a needed column.
        OSError: the file cannot be read.
    """
    _check_kind(columns, kind)
    allowed = None if labels is None else set(labels)
    empty = True
    for row in read_rows(path, columns):
        empty = False
        location = f"{os.fspath(path)}, line {row.line}"
        try:
            if row.error:
                raise ValueError(row.error)
            values = row.values
            label = _label(values, columns, kind)
            if allowed is not None and label is not None and kind != "regression":
                for name in label if kind == "multi_label" else (label,):
                    if name not in allowed:
                        shown = ", ".join(labels or ())
                        raise ValueError(f"unknown label {name!r}: expected one of {shown}")
            example = TextExample(
                f"{split}-{values[columns.id] if columns.id else row.line}",
                _text(values, columns.text),
                _text(values, columns.text_b) if columns.text_b else None,
                label,
                location,
            )
        except ValueError as error:
            refuse(on_bad, f"{location}: {error}")
            continue
        yield example
    if empty:
        raise ValueError(f"{os.fspath(path)}: no examples: the file has but a header")


def sort_labels(labels: set[str]) -> tuple[str, ...]:
    """Put labels into the order of their ids: integers by value, other names by alphabet.

    Args:
        labels: their names.
    """
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def infer_labels(
    path: str | os.PathLike[str], columns: Columns, kind: str, on_bad: OnBad = None
) -> tuple[str, ...] | None:
    """Find the labels of a task in its training file, and tell on standard error how often each is.

    Args:
        path: the training file.
        columns: which columns mean what.
        kind: "classification", "regression" or "multi_label".
        on_bad: what to do with the message of a bad row; None to raise it.

    Returns:
        The labels in the order of their ids: sorted (see `sort_labels`), or as `columns.label` has
        them if each has a column; None for regression.

    Raises:
        ValueError: as `read_examples`; no label column, or only one label for classification.
    """
    _check_kind(columns, kind)
    least = get_kind(kind).least_labels
    if not least:
        return None
    if not columns.label:
        raise ValueError(f"label: {kind} needs a column of labels, or the labels themselves")
    labels: Counter[str] = Counter()
    rows = 0
    for example in read_examples(path, columns, kind, on_bad=on_bad):
        labels.update(example.label if kind == "multi_label" else (example.label,))  # type: ignore[arg-type]
        rows += 1
    column, *others = columns.label
    where = f"{os.fspath(path)}: column{'s' * bool(others)} {', '.join(map(repr, columns.label))}"
    if len(labels) < least and not others:
        raise ValueError(
            f"{where}: expected at least {least} labels, got {', '.join(labels) or 'none'}"
        )
    ordered = columns.label if others else sort_labels(set(labels))
    tell_labels(where, ordered, labels)
    for doubt in label_doubts(ordered, rows) if not others else ():
        print(f"warning: {where}: {doubt}", file=sys.stderr, flush=True)
    return ordered


def tell_labels(where: str, labels: Sequence[str], counts: Mapping[str, int]) -> None:
    """Print on standard error the labels that training data have, and how often each is.

    Args:
        where: file and column.
        labels: their names, in order.
        counts: how often each stands there.
    """
    shown = [f"{label} {counts.get(label, 0):,}" for label in labels[:_LABELS_SHOWN]]
    more = f" and {len(labels) - len(shown)} more" if len(labels) > len(shown) else ""
    print(f"{where}: {len(labels)} labels: {', '.join(shown)}{more}", file=sys.stderr, flush=True)


def label_doubts(labels: Sequence[str], rows: int) -> list[str]:
    """Say what is doubtful about the labels that a training file has, and what to do.

    Args:
        labels: their names.
        rows: examples of the file.

    Returns:
        A line for each doubt.
    """
    doubts = []
    if len(labels) > 2 and 2 * len(labels) > rows:
        doubts.append(
            f"{len(labels)} different labels in {rows} rows; is it the column of labels? Numbers "
            "to be predicted as such are --kind=regression"
        )
    by_number: dict[float, str] = {}
    for label in labels:
        with contextlib.suppress(ValueError):
            other = by_number.setdefault(float(label), label)
            if other != label:
                doubts.append(
                    f"labels {other!r} and {label!r} are the same number, but two labels; write "
                    "each label in one way"
                )
    lists = [label for label in labels if re.fullmatch(r"\[.*\]", label, re.DOTALL)]
    if lists:
        doubts.append(
            f"label {lists[0]!r} looks like a list, but is one label; for several labels a row use "
            "--kind=multi_label, with names between separators or lists of JSONL"
        )
    return doubts
