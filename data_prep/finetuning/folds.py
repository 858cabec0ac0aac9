"""Parts of a training set that are held out in turn: k-fold cross-validation.

scikit-learn draws them, and is imported on use.
"""

import dataclasses
import hashlib
import logging
import unicodedata
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from bert_tf.tasks.table import Task
from data_prep.finetuning.glue import OnBad
from data_prep.finetuning.kinds import reader_of
from data_prep.finetuning.sources import Source

_SEED = 0  # of the parts: they are the same in every run, whatever its own seed

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One of the parts, which is held out while a model trains on the others.

    Attributes:
        number: which of them, from 0.
        count: how many there are.

    Raises:
        ValueError: there is no such part.
    """

    number: int
    count: int

    def __post_init__(self):
        if not (self.count >= 2 and 0 <= self.number < self.count):
            raise ValueError(
                f"folds: expected at least 2 and a number below, got {self.number} of {self.count}"
            )

    def sources(
        self, task: Task, train: Source, on_bad: OnBad = None, held_out: Source | None = None
    ) -> list[Source]:
        """Return the training set without this part as "train", and the part as "dev".

        Examples of the same texts are in one part, so that none is trained on and held out (see
        `unit_of`): of questions those on one document, of choices those with one beginning. Pairs
        that have only one text in common may be apart. Each part has nearly as many of these as
        the others, and of each label nearly as many.

        Args:
            task: with its labels.
            train: the whole training set.
            on_bad: as of its reader.
            held_out: the same as it is read to be evaluated; by default as it is read to train.

        Raises:
            ValueError: fewer different examples than parts.
        """
        part_of = assign_folds(task, train, self.count, on_bad)
        return [
            self._part(task, train, part_of, "train"),
            self._part(task, held_out or train, part_of, "dev"),
        ]

    def _part(self, task: Task, source: Source, part_of: dict[Hashable, int], split: str) -> Source:
        is_held_out = split == "dev"

        def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
            for example in source.read(on_bad, on_skip):
                number = part_of.get(unit_of(task, example))
                # What training skips, as a question without its answer, belongs to no part.
                if number is not None and (number == self.number) == is_held_out:
                    yield example

        parts = (f"{n} {unit!r}" for unit, n in part_of.items())
        digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
        fold = {"number": self.number, "of": self.count, "parts": digest[:16]}
        settings = {**source.settings, "fold": fold}
        return dataclasses.replace(
            source, split=split, read=read, settings=settings, line_per_example=False
        )


def unit_of(task: Task, example: Any) -> Hashable:
    """Return what of an example must not be both trained on and held out.

    Texts that differ in case or spaces are the same, and so is a pair the other way round.

    Args:
        task: of the example.
        example: what its source reads.
    """
    texts = tuple(map(_plain, reader_of(task).texts(example)))
    if task.kind == "span":
        return texts[1:]  # the document
    if task.kind == "multiple_choice":
        return texts[:1]
    return texts if task.kind == "token_classification" else tuple(sorted(texts))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def assign_folds(
    task: Task, source: Source, count: int, on_bad: OnBad = None
) -> dict[Hashable, int]:
    """Draw the parts of a training set, the same each time.

    Args:
        task: with its labels.
        source: of the examples.
        count: of the parts.
        on_bad: as of its reader.

    Returns:
        `unit_of` an example -> the number of its part, from 0.

    Raises:
        ValueError: fewer different examples than parts.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    label_of: dict[Hashable, Any] = {}
    for example in source.read(on_bad, on_bad and (lambda message: None)):
        # Of examples with the same texts the first one's label counts.
        label_of.setdefault(unit_of(task, example), getattr(example, "label", None))
    units, labels = list(label_of), list(label_of.values())
    if len(units) < count:
        what = {"span": "documents", "token_classification": "sentences or documents"}
        raise ValueError(
            f"folds: expected at most {len(units)}, the different "
            f"{what.get(task.kind, 'examples')} of {', '.join(source.files)}, got {count}"
        )
    splitter: Any = KFold(count, shuffle=True, random_state=_SEED)
    if task.kind == "classification":
        members = Counter(labels)
        if few := sorted(str(label) for label, n in members.items() if n < count):
            _log.warning(
                "folds: %s: fewer than %d examples have the label %s, so that parts have none",
                *(", ".join(source.files), count, ", ".join(few)),
            )
        if max(members.values()) >= count:
            splitter = StratifiedKFold(count, shuffle=True, random_state=_SEED)
    part_of = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, held_out) in enumerate(splitter.split(units, labels)):
            part_of |= {units[n]: number for n in held_out}
    return part_of


def with_fold(
    fold: Fold | None, task: Task, sources: Sequence[Source], on_bad: OnBad = None
) -> list[Source]:
    """Return the sources of a fold's training and evaluation; without one those that are given.

    Args:
        fold: which part is held out; None for none.
        task: with its labels.
        sources: of the task's splits.
        on_bad: as of their reader.

    Raises:
        ValueError: no training set; or as for `Fold.sources`.
    """
    if fold is None:
        return list(sources)
    train = next((source for source in sources if source.split == "train"), None)
    if train is None:
        raise ValueError(f"folds: {task.name} has no train split")
    return fold.sources(task, train, on_bad)
