"""The tables of the paper (arXiv 1810.04805) as grids of runs, with the paper's own figures.

A table is rows and columns of cells. A cell names the runs that give it (one for each seed and
each choice of hyper-parameters), the figure that is read from their results, and what the paper
has there. `make_table` builds one for a `Scale`.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bert_tf.config import BertConfig
from bert_tf.weights.locate import CONFIG_NAME, locate, read_config
from experiments.paper_tables.grid import GridError, Run
from experiments.paper_tables.recipes import TARGETS, Places, Scale
from experiments.paper_tables.runs import Cell, RunsOfTable, cell_of, folder_of


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: its label and a cell for each column."""

    label: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, and all runs that it needs.

    Attributes:
        number: in the paper.
        title: of the paper's table, in our words.
        note: how what is made here differs from the paper, one sentence each.
        columns: titles.
        rows: lines.
        runs: the grid.
        curves: label -> names of the runs, one of each seed, whose learning curves are shown.
        shown_model: name of the run whose model the pictures of attention show, where there is one.
    """

    number: int
    title: str
    note: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    curves: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shown_model: str | None = None


_SMALL_NOTE = (
    "Small models, few steps and samples of the training sets: rows compare with each other, and "
    "not with the paper's figures."
)
_DEV_NOTE = "Ours are figures on dev; the paper's of this table are of the hidden test sets."
_SHARED_NOTE = "Rates and batch sizes are chosen on dev by the mean over seeds, as the paper did."


def _table(
    grid: RunsOfTable,
    title: str,
    columns: Iterable[str],
    rows: Iterable[Row],
    notes: Iterable[str] = (),
    curves: Mapping[str, tuple[str, ...]] | None = None,
    shown_model: str | None = None,
) -> Table:
    """Make a table of the rows, and of all runs that were added to the grid meanwhile."""
    rows = tuple(rows)
    return Table(
        grid.number,
        title,
        (_SMALL_NOTE if grid.scale.name == "small" else _SHARED_NOTE, *notes),
        tuple(columns),
        rows,
        tuple(grid.runs.values()),
        tuple((curves or {}).items()),
        shown_model,
    )


def _titles(names: Iterable[str]) -> list[str]:
    return [TARGETS[name].title for name in names]


def _models(places: Places) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (label, folder, configuration) of the pre-trained models that were given."""
    folders = [("base", places.get("model_dir"))]
    if places.large_model_dir is not None:
        folders.append(("large", places.large_model_dir))
    models = []
    for label, folder in folders:
        path = pathlib.Path(folder) / CONFIG_NAME  # which is enough to show what would run
        known = path.exists()
        config = BertConfig.from_json_file(path) if known else read_config(locate(folder))
        if config is None:
            raise GridError(f"{folder}: expected a model directory, with bert_config.json")
        models.append((label, folder, config.to_dict()))
    return models


# Of a row of the paper: its name, layers and hidden size.
_ROWS_OF_THE_PAPER = {"base": ("BERT-BASE", 12, 768), "large": ("BERT-LARGE", 24, 1024)}


def _words(label: str, config: Mapping[str, Any]) -> str:
    """Return the name of a row, with the size of the model if it is not the paper's."""
    words, *size = _ROWS_OF_THE_PAPER[label]
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    return words if size == [layers, hidden] else f"L{layers}-H{hidden} (for {words})"


def _of_given_models(
    grid: RunsOfTable,
    title: str,
    names: Sequence[str],
    papers: Mapping[str, Sequence[float | None]],
    notes: Sequence[str] = (),
) -> Table:
    """Make a table of fine-tuning the given models (1 to 4).

    Args:
        grid: where the runs are added.
        title: of the table.
        names: of the targets, one a column; of two columns of one target the first is of exact
            matches.
        papers: label of a model -> the paper's figures.
        notes: see `Table`.
    """
    exact_match = len(set(names)) < len(names)
    rows = []
    for label, folder, config in _models(grid.places):
        cells = [
            grid.finetuned(
                f"{grid.folder}/{label}", name, model_dir=folder, config=config, paper=paper
            )
            for name, paper in zip(names, papers[label], strict=True)
        ]
        words = _words(label, config)
        if exact_match:
            cells[0] = dataclasses.replace(cells[0], figure="exact_match")
            words += ", single"
        rows.append(Row(words, tuple(cells)))
    columns = _titles(names)
    if exact_match:
        columns[0] = columns[0].replace("F1", "EM")
    return _table(grid, title, columns, rows, notes)


def _table_1(grid: RunsOfTable) -> Table:
    names = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc_f1", "rte")
    papers = {
        "base": (84.6, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4),
        "large": (86.7, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1),
    }
    return _of_given_models(grid, "GLUE", names, papers, (_DEV_NOTE,))


def _table_2(grid: RunsOfTable) -> Table:
    papers = {"base": (80.8, 88.5), "large": (84.1, 90.9)}
    return _of_given_models(grid, "SQuAD 1.1, dev", ("squad1", "squad1"), papers)


def _table_3(grid: RunsOfTable) -> Table:
    papers = {"base": (None, None), "large": (78.7, 81.9)}
    return _of_given_models(grid, "SQuAD 2.0, dev", ("squad2", "squad2"), papers)


def _table_4(grid: RunsOfTable) -> Table:
    papers = {"base": (81.6,), "large": (86.6,)}
    return _of_given_models(grid, "SWAG, dev accuracy", ("swag",), papers)


_NO_NSP = {"next_sentence_prediction": False}
_LEFT_TO_RIGHT = {**_NO_NSP, "left_to_right": True}
# Table 5: words, configuration, whether a BiLSTM is put on top, and the paper's figures.
_TASKS_OF_PRETRAINING = (
    ("BERT-BASE", {}, False, (84.4, 88.4, 86.7, 92.7, 88.5)),
    ("No NSP", _NO_NSP, False, (83.9, 84.9, 86.5, 92.6, 87.9)),
    ("LTR & No NSP", _LEFT_TO_RIGHT, False, (82.1, 84.3, 77.5, 92.1, 77.8)),
    ("+ BiLSTM", _LEFT_TO_RIGHT, True, (82.1, 84.1, 75.7, 91.6, 84.9)),
)


def _table_5(grid: RunsOfTable) -> Table:
    names = ("mnli", "qnli", "mrpc", "sst2", "squad1")
    rows, curves = [], {}
    for words, config, with_lstm, papers in _TASKS_OF_PRETRAINING:
        pretrained = grid.pretrained(config)
        if not with_lstm:
            curves[words] = pretrained
        cells = (
            _finetuned(grid, pretrained, name, config, paper, with_lstm=with_lstm)
            for name, paper in zip(names, papers, strict=True)
        )
        rows.append(Row(words, tuple(cells)))
    note = (
        "A left-to-right model predicts every next piece, and a sentence is represented by its "
        "last token, since the first sees nothing but itself; the paper does not say which it "
        "took."
    )
    title, shown = "Pre-training tasks, dev", curves["BERT-BASE"][0]
    return _table(grid, title, _titles(names), rows, (note,), curves, shown)


def _finetuned(
    grid: RunsOfTable,
    pretrained: Sequence[str],
    name: str,
    config: Mapping[str, Any],
    paper: float | None,
    *,
    with_lstm: bool = False,
) -> Cell:
    """Fine-tune the models that a table has pre-trained itself; return the one cell of all."""
    return cell_of(
        grid.finetuned(
            f"{folder_of(run)}-bilstm" if with_lstm else folder_of(run),
            name,
            model_dir=grid.path(run),
            needs=(run,),
            config={**grid.scale.pretraining.config, **config},
            paper=paper,
            bilstm=with_lstm or None,
        )
        for run in pretrained
    )


_SIZES_OF_THE_PAPER = (
    ((3, 768, 12), (5.84, 77.9, 79.8, 88.4)),
    ((6, 768, 3), (5.24, 80.6, 82.2, 90.7)),
    ((6, 768, 12), (4.68, 81.9, 84.8, 91.3)),
    ((12, 768, 12), (3.99, 84.4, 86.7, 92.9)),
    ((12, 1024, 16), (3.54, 85.7, 86.9, 93.3)),
    ((24, 1024, 16), (3.23, 86.6, 87.8, 93.7)),
)


def _table_6(grid: RunsOfTable) -> Table:
    names = ("mnli", "mrpc", "sst2")
    rows, curves, last = [], {}, ""
    sizes = grid.scale.sizes
    by_size = dict(_SIZES_OF_THE_PAPER)
    beside: Sequence[tuple[Any, Any]] = [(size, by_size.get(size, (None,) * 4)) for size in sizes]
    if grid.scale.name == "small":  # each of its sizes stands for one of the paper's
        beside = _SIZES_OF_THE_PAPER
    for size, (paper_size, papers) in zip(sizes, beside, strict=True):
        layers, hidden, heads = size
        label = f"L{layers}-H{hidden}-A{heads}"
        config = {"num_hidden_layers": layers, "hidden_size": hidden}
        config |= {"num_attention_heads": heads, "intermediate_size": 4 * hidden}
        pretrained = grid.pretrained(config)
        curves[label], last = pretrained, pretrained[0]
        choices = (("", pretrained),)
        perplexity = Cell(choices, "exp:masked_lm_loss", 1.0, papers[0], higher_is_better=False)
        cells = (
            _finetuned(grid, pretrained, name, config, paper)
            for name, paper in zip(names, papers[1:], strict=True)
        )
        words = label if size == paper_size else f"{label} (for L{'-'.join(map(str, paper_size))})"
        rows.append(Row(words, (perplexity, *cells)))
    note = "Perplexity is that of masked pieces in held-out text."
    columns = ("LM perplexity", *_titles(names))
    return _table(grid, "Model size, dev", columns, rows, (note,), curves, last)


# Table 7: feature choice and the paper's dev F1.
_FEATURES_OF_THE_PAPER = (
    ("embeddings", "Embeddings", 91.0),
    ("second_to_last", "Second-to-Last Hidden", 95.6),
    ("last", "Last Hidden", 94.9),
    ("weighted_sum_last_four", "Weighted Sum Last Four Hidden", 95.9),
    ("concat_last_four", "Concat Last Four Hidden", 96.1),
    ("weighted_sum_all", "Weighted Sum All Layers", 95.5),
)


def _table_7(grid: RunsOfTable) -> Table:
    parts = ("eval", "test") if grid.places.ner_test_file is not None else ("eval",)
    rows = []
    for label, folder, config in _models(grid.places):
        paper = {"base": (96.4, 92.4), "large": (96.6, 92.8)}[label]
        flags = {}
        if len(parts) == 2:
            flags = {"test_file": grid.places.ner_test_file, "do_predict": True}
        cell = grid.finetuned(
            f"{grid.folder}/{label}_finetuned",
            "ner",
            model_dir=folder,
            config=config,
            paper=paper[0],
            **flags,
        )
        cells = [cell]
        if len(parts) == 2:
            of_test = dataclasses.replace(cell, figure="test_entity_f1", paper=paper[1])
            cells.append(dataclasses.replace(of_test, result="test_results.json"))
        rows.append(Row(f"{_words(label, config)}, fine-tuned", tuple(cells)))
    label, folder, _ = _models(grid.places)[0]
    for choice, words, paper in _FEATURES_OF_THE_PAPER:
        cells = [
            grid.tagged(
                f"{grid.folder}/{label}",
                choice,
                part,
                model_dir=folder,
                paper=paper if part == "eval" else None,
            )
            for part in parts
        ]
        rows.append(Row(f"{words}, features", tuple(cells)))
    columns = ("dev F1", "test F1")[: len(parts)]
    return _table(grid, "Named entities, F1", columns, rows, ("The paper's are of CoNLL-2003.",))


# Table 8: fractions masked, kept and random, and the paper's figures.
_MASKS_OF_THE_PAPER = (
    ((80, 10, 10), (84.2, 95.4, 94.9)),
    ((100, 0, 0), (84.3, 94.9, 94.0)),
    ((80, 0, 20), (84.1, 95.2, 94.6)),
    ((80, 20, 0), (84.4, 95.2, 94.7)),
    ((0, 20, 80), (83.7, 94.8, 94.6)),
    ((0, 0, 100), (83.6, 94.9, 94.6)),
)


def _table_8(grid: RunsOfTable) -> Table:
    rows, curves = [], {}
    choice = "concat_last_four"
    if (grid.scale.pretraining.config.get("num_hidden_layers") or 12) < 4:
        choice = "last"  # a small model has not four layers
    for (masked, kept, random), papers in _MASKS_OF_THE_PAPER:
        pretrained = grid.pretrained(
            {}, mask_prob=masked / 100, keep_prob=kept / 100, random_prob=random / 100
        )
        curves[f"{masked}/{kept}/{random}"] = pretrained
        features = cell_of(
            grid.tagged(
                folder_of(run),
                choice,
                "eval",
                model_dir=grid.path(run),
                needs=(run,),
                paper=papers[2],
            )
            for run in pretrained
        )
        cells = (
            _finetuned(grid, pretrained, "mnli", {}, papers[0]),
            _finetuned(grid, pretrained, "ner", {}, papers[1]),
            features,
        )
        rows.append(Row(f"{masked}% [MASK], {kept}% same, {random}% random", cells))
    note = f"Features of the last column: {choice.replace('_', ' ')}."
    columns = ("MNLI fine-tuned", "NER fine-tuned", "NER features")
    shown = next(iter(curves.values()))[0]
    return _table(grid, "Masking, dev", columns, rows, (note,), curves, shown)


_MAKERS = (_table_1, _table_2, _table_3, _table_4, _table_5, _table_6, _table_7, _table_8)
NUMBERS = tuple(range(1, 9))


def make_table(number: int, scale: Scale, places: Places, root: pathlib.Path) -> Table:
    """Make a table of the paper.

    Args:
        number: 1 to 8.
        scale: its sizes.
        places: of data and models.
        root: folder of the runs; configurations of models are written there.

    Raises:
        GridError: a place that the table needs was not given.
        OSError: a file cannot be read or written.
    """
    if number not in NUMBERS:
        raise GridError(f"table: expected 1 to 8, got {number}")
    return _MAKERS[number - 1](RunsOfTable(number, scale, places, root))
