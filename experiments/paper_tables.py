"""The tables of the paper (arXiv 1810.04805) as grids of runs, with the paper's own figures.

A table is rows and columns of cells. A cell names the runs that give it (one for each seed and
each choice of hyper-parameters), the figure that is read from their results, and what the paper
has there. `make_table` builds one for a `Scale`: "full" is the paper's recipe, "small" the same
code with small models on samples. What several tables need is run once: records, and the models
that tables 5, 6 and 8 pre-train, lie in folders that are not of one table.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bert_tf.config import BertConfig
from bert_tf.tokenization import load_vocab
from experiments.paper_grid import GridError, Run, flags_of

# --- what a table is made of ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A task that a model is fine-tuned on, and the figure that its column shows.

    Attributes:
        title: of the column.
        script: that trains it.
        flags: of the script, beside those of model and recipe; {name} stands for a folder of data.
        figure: key in eval_results.json.
        factor: what makes it a percentage.
        num_examples: training examples of the official data, for the estimate of cost.
    """

    title: str
    script: str
    flags: tuple[tuple[str, Any], ...]
    figure: str
    factor: float = 100.0
    num_examples: int = 0


def _glue(name: str, title: str, figure: str, num_examples: int) -> Target:
    flags = flags_of(task_name=name, data_dir=f"{{glue_dir}}/{name}")
    return Target(
        title, "experiments/run_classifier.py", flags, f"eval_{figure}", 100, num_examples
    )


_TAGGER_RESULT = "feature_based.json"

TARGETS = {
    "mnli": _glue("MNLI", "MNLI-m", "accuracy", 392_702),
    "qqp": _glue("QQP", "QQP (F1)", "f1", 363_849),
    "qnli": _glue("QNLI", "QNLI", "accuracy", 104_743),
    "sst2": _glue("SST-2", "SST-2", "accuracy", 67_349),
    "cola": _glue("CoLA", "CoLA (Matthews)", "matthews_correlation", 8_551),
    "stsb": _glue("STS-B", "STS-B (Spearman)", "spearman_correlation", 5_749),
    "mrpc": _glue("MRPC", "MRPC", "accuracy", 3_668),
    "mrpc_f1": _glue("MRPC", "MRPC (F1)", "f1", 3_668),
    "rte": _glue("RTE", "RTE", "accuracy", 2_490),
    "squad1": Target(
        "SQuAD 1.1 (F1)",
        "experiments/run_squad.py",
        flags_of(train_file="{squad1_train_file}", predict_file="{squad1_dev_file}"),
        "f1",
        1.0,
        88_000,
    ),
    "squad2": Target(
        "SQuAD 2.0 (F1)",
        "experiments/run_squad.py",
        flags_of(
            train_file="{squad2_train_file}",
            predict_file="{squad2_dev_file}",
            version_2_with_negative=True,
            skip_bad_examples=True,  # samples of it have questions with several answers
        ),
        "f1",
        1.0,
        131_000,
    ),
    "swag": Target(
        "SWAG",
        "experiments/run_swag.py",
        flags_of(train_file="{swag_train_file}", dev_file="{swag_dev_file}"),
        "eval_accuracy",
        100,
        73_546,
    ),
    "ner": Target(
        "NER (F1)",
        "experiments/run_ner.py",
        flags_of(train_file="{ner_train_file}", dev_file="{ner_dev_file}"),
        "eval_entity_f1",
        1.0,
        14_041,
    ),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        choices: label of hyper-parameters -> names of the runs with them, one for each seed.
        figure: key in the result file of these runs.
        factor: what the figure is multiplied with.
        paper: the paper's figure, or None where it has none.
        higher_is_better: whether the best of several choices is the highest.
        result: the file in the runs' folders.
    """

    choices: tuple[tuple[str, tuple[str, ...]], ...]
    figure: str
    factor: float = 1.0
    paper: float | None = None
    higher_is_better: bool = True
    result: str = "eval_results.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: its label and a cell for each column, None where the table has none."""

    label: str
    cells: tuple[Cell | None, ...]


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
        curves: label -> name of a run whose learning curve is shown.
        shown_model: name of the run whose model the pictures of attention show, where there is one.
    """

    number: int
    title: str
    note: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    curves: tuple[tuple[str, str], ...] = ()
    shown_model: str | None = None


# --- scales ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a task is fine-tuned; all combinations of rates and batch sizes are tried."""

    learning_rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    epochs: float | None = None
    steps: int | None = None
    max_seq_length: int = 128


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How a model is pre-trained; of two phases where `second_length` is given."""

    config: Mapping[str, Any]
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    length: int
    second_length: int | None = None
    dupe_factor: int = 10
    log_steps: int = 100


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        name: "full" or "small".
        words: what a report's title says of it.
        seeds: of fine-tuning and of taggers.
        recipes: name of a target -> recipe; "" for all others.
        own_learning_rates: in place of a recipe's, for models that a table has pre-trained itself.
        pretraining: of tables 5, 6 and 8.
        sizes: of table 6: (layers, hidden size, heads), in the order of the paper's six.
        lstm_size: units of the taggers of tables 7 and 8.
        tagger_epochs: of the same.
        vocab_size: of the vocabulary to learn from the corpus, or None to take --vocab_file.
    """

    name: str
    words: str
    seeds: tuple[int, ...]
    recipes: Mapping[str, Recipe]
    pretraining: Pretraining
    sizes: tuple[tuple[int, int, int], ...]
    lstm_size: int
    tagger_epochs: int
    vocab_size: int | None
    own_learning_rates: tuple[float, ...] | None = None

    def recipe(self, target: str) -> Recipe:
        """Return the recipe of a target."""
        return self.recipes.get(target, self.recipes[""])


FULL = Scale(
    name="full",
    words="the paper's recipe",
    seeds=(1, 2, 3, 4, 5),
    # Section 4: three epochs in batches of 32, the rate chosen on dev; SQuAD and SWAG as there.
    recipes={
        "": Recipe((5e-5, 4e-5, 3e-5, 2e-5), (32,), epochs=3),
        "squad1": Recipe((5e-5,), (32,), epochs=3, max_seq_length=384),
        "squad2": Recipe((5e-5,), (48,), epochs=2, max_seq_length=384),
        "swag": Recipe((2e-5,), (16,), epochs=3),
        # Appendix A.3.
        "ner": Recipe((5e-5, 3e-5, 2e-5), (16, 32), epochs=3, max_seq_length=512),
    },
    # Appendix A.2.
    pretraining=Pretraining(
        {}, 256, 1_000_000, 1e-4, 10_000, length=128, second_length=512, log_steps=1000
    ),
    sizes=((3, 768, 12), (6, 768, 3), (6, 768, 12), (12, 768, 12), (12, 1024, 16), (24, 1024, 16)),
    lstm_size=768,
    tagger_epochs=20,
    vocab_size=None,
)

SMALL = Scale(
    name="small",
    words="small models on samples, to show that it runs: the figures say nothing of the paper's",
    seeds=(1, 2),
    recipes={
        "": Recipe((1e-4,), (32,), steps=120, max_seq_length=64),
        "squad1": Recipe((1e-4,), (16,), steps=120, max_seq_length=128),
        "squad2": Recipe((1e-4,), (16,), steps=120, max_seq_length=128),
        "swag": Recipe((1e-4,), (16,), steps=80, max_seq_length=64),
        "ner": Recipe((1e-4,), (32,), steps=400, max_seq_length=64),
    },
    pretraining=Pretraining(
        # So few steps teach the usual initial weights, made for 768 units, and dropout nothing but
        # how frequent each piece is.
        {
            "num_hidden_layers": 2,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "initializer_range": 0.05,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        batch_size=32,
        steps=2000,
        learning_rate=1e-3,
        warmup_steps=200,
        length=64,
        dupe_factor=1,
    ),
    sizes=((1, 128, 2), (2, 128, 1), (2, 128, 2), (3, 128, 2), (3, 192, 3), (4, 192, 3)),
    lstm_size=64,
    tagger_epochs=4,
    vocab_size=8000,
    own_learning_rates=(3e-4,),  # they are small; a model of 384 units learns nothing at it
)

SCALES = {scale.name: scale for scale in (FULL, SMALL)}


@dataclasses.dataclass(frozen=True)
class Places:
    """Where data and models are; what a table does not need may be None.

    Attributes:
        glue_dir: with a folder for each task, by its official name.
        squad1_train_file: and so on: official files.
        corpus_files: text for pre-training, one sentence a line and an empty line between
            documents (data_prep/extract_corpus.py makes it), or globs, comma separated.
        heldout_files: other documents of it, to evaluate on.
        vocab_file: the vocabulary, at full scale.
        model_dir: a pre-trained model to fine-tune, of tables 1 to 4 and 7.
        large_model_dir: a second one, for the rows of BERT-LARGE.
    """

    glue_dir: str | None = None
    squad1_train_file: str | None = None
    squad1_dev_file: str | None = None
    squad2_train_file: str | None = None
    squad2_dev_file: str | None = None
    swag_train_file: str | None = None
    swag_dev_file: str | None = None
    ner_train_file: str | None = None
    ner_dev_file: str | None = None
    ner_test_file: str | None = None
    corpus_files: str | None = None
    heldout_files: str | None = None
    vocab_file: str | None = None
    model_dir: str | None = None
    large_model_dir: str | None = None

    def get(self, name: str) -> str:
        """Return a place.

        Raises:
            GridError: it was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise GridError(f"--{name}: this table needs it")
        return value


# --- runs -----------------------------------------------------------------------------------------


_PRETRAINED = "pretrained"
_USUAL_MASKS = {"mask_prob": 0.8, "keep_prob": 0.1, "random_prob": 0.1}


class _Grid:
    """Collects the runs of one table; what two cells share is one run."""

    def __init__(self, number: int, scale: Scale, places: Places, root: pathlib.Path):
        self.folder, self.scale, self.places, self.root = f"table{number}", scale, places, root
        self.runs: dict[str, Run] = {}

    def add(self, run: Run) -> str:
        """Add a run, unless it is there, and return its name."""
        known = self.runs.setdefault(run.name, run)
        if known != run:
            raise GridError(f"two different runs have the name {run.name!r}")
        return run.name

    def path(self, name: str) -> str:
        """Return the path of what a run leaves."""
        return str(self.root / name)

    def config_file(self, folder: str, config: Mapping[str, Any]) -> str:
        """Write the configuration of a variant; return the path of the file."""
        path = self.root / folder / "bert_config.json"
        made = _config(config, self.vocab_size()).to_json_string()
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made, encoding="utf-8")
        return str(path)

    def vocab_size(self) -> int:
        """Return the number of pieces that a model has."""
        if self.scale.vocab_size is not None:
            return self.scale.vocab_size
        return max(load_vocab(self.places.get("vocab_file")).values()) + 1

    # -- pre-training --

    def vocabulary(self) -> tuple[str, tuple[str, ...]]:
        """Return the path of the vocabulary, and the runs that make it."""
        if self.scale.vocab_size is None:
            return self.places.get("vocab_file"), ()
        name = self.add(
            Run(
                name="data/vocab.txt",
                script="data_prep/learn_vocab.py",
                flags=flags_of(
                    input_file=self.places.get("corpus_files"),
                    vocab_size=self.scale.vocab_size,
                    num_unused=0,
                ),
                result="",
                output_flag="output_file",
            )
        )
        return self.path(name), (name,)

    def records(self, split: str, label: str, length: int, **flags: Any) -> str:
        """Make records of the corpus, "train" or "heldout"; return the run's name."""
        vocabulary, needs = self.vocabulary()
        files = self.places.get("corpus_files" if split == "train" else "heldout_files")
        dupe_factor = self.scale.pretraining.dupe_factor if split == "train" else 1
        return self.add(
            Run(
                name=f"data/{label}-{length}-{split}.tfrecord",
                script="data_prep/create_pretraining_data.py",
                flags=flags_of(
                    input_file=files,
                    vocab_file=vocabulary,
                    max_seq_length=length,
                    max_predictions_per_seq=predictions_of(length),
                    dupe_factor=1 if flags.get("dynamic_masking") else dupe_factor,
                    num_workers=1,
                    **flags,
                ),
                needs=needs,
                result="",
                output_flag="output_file",
            )
        )

    def pretraining(self, config: Mapping[str, Any], **masks: Any) -> str:
        """Pre-train a variant; return the run's name, which tells its size and what is unusual.

        Args:
            config: what differs from the scale's configuration.
            **masks: flags of how pieces are masked, if not in the usual way.
        """
        recipe = self.scale.pretraining
        config = {**recipe.config, **config}
        model = _config(config, self.vocab_size())
        label = f"L{model.num_hidden_layers}-H{model.hidden_size}-A{model.num_attention_heads}"
        data = "masked"
        if model.left_to_right:  # it predicts every next piece: nothing is masked
            data, masks = "next", {"dynamic_masking": True}
            label += "-left_to_right"
        elif masks and masks != _USUAL_MASKS:
            percent = [round(100 * masks[name]) for name in _USUAL_MASKS]
            data = "mask{}-same{}-random{}".format(*percent)
            label += f"-{data}"
        else:
            masks = {}
            label += "" if model.next_sentence_prediction else "-no_nsp"
        folder = f"{_PRETRAINED}/{label}"
        vocabulary, needs = self.vocabulary()
        made = {
            (split, length): self.records(split, data, length, **masks)
            for split in ("train", "heldout")
            for length in (recipe.length, recipe.second_length)
            if length is not None
        }
        last = recipe.second_length or recipe.length
        second: dict[str, Any] = {}
        if recipe.second_length is not None:
            second = {
                "second_input_file": self.path(made["train", last]),
                "second_max_seq_length": last,
                "second_max_predictions_per_seq": predictions_of(last),
            }
        return self.add(
            Run(
                name=f"{folder}/pretraining",
                script="experiments/run_pretraining.py",
                flags=flags_of(
                    bert_config_file=self.config_file(folder, config),
                    vocab_file=vocabulary,
                    input_file=self.path(made["train", recipe.length]),
                    eval_input_file=self.path(made["heldout", recipe.length]),
                    max_seq_length=recipe.length,
                    max_predictions_per_seq=predictions_of(recipe.length),
                    **second,
                    do_train=True,
                    do_eval=True,
                    max_eval_steps=0,
                    eval_batch_size=64,
                    train_batch_size=recipe.batch_size,
                    num_train_steps=recipe.steps,
                    num_warmup_steps=recipe.warmup_steps,
                    learning_rate=recipe.learning_rate,
                    eval_every_steps=max(1, recipe.steps // 10),
                    log_steps=recipe.log_steps,
                ),
                needs=(*needs, *made.values()),
                train_flops=pretraining_flops(config, recipe, self.vocab_size()),
                memory_bytes=3 << 30,
            )
        )

    # -- fine-tuning --

    def target_flags(self, target: Target) -> dict[str, Any]:
        """Return a target's flags, with its places filled in."""
        flags = {}
        for name, value in target.flags:
            if isinstance(value, str) and value.startswith("{"):
                place, _, rest = value[1:].partition("}")
                value = self.places.get(place) + rest
            flags[name] = value
        return flags

    def finetuned(
        self,
        folder: str,
        name: str,
        *,
        model_dir: str,
        needs: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        paper: float | None = None,
        **flags: Any,
    ) -> Cell:
        """Fine-tune a model on a target, for each choice and seed; return the cell."""
        target, recipe = TARGETS[name], self.scale.recipe(name)
        # MRPC's accuracy and F1 are of the same runs.
        task = "mrpc" if name == "mrpc_f1" else name
        rates = recipe.learning_rates
        if needs and self.scale.own_learning_rates is not None:
            rates = self.scale.own_learning_rates
        choices = []
        for rate, size in itertools.product(rates, recipe.batch_sizes):
            runs = tuple(
                self.add(
                    Run(
                        name=f"{folder}/{task}-lr{rate:g}-b{size}-seed{seed}",
                        script=target.script,
                        flags=flags_of(
                            model_dir=model_dir,
                            **self.target_flags(target),
                            do_train=True,
                            do_eval=True,
                            eval_batch_size=32,
                            max_seq_length=recipe.max_seq_length,
                            learning_rate=rate,
                            train_batch_size=size,
                            num_train_epochs=recipe.epochs,
                            num_train_steps=recipe.steps,
                            seeds=seed,
                            cache_dir=self.path("records"),
                            **flags,
                        ),
                        needs=tuple(needs),
                        train_flops=finetuning_flops(config or {}, recipe, size, target),
                    )
                )
                for seed in self.scale.seeds
            )
            choices.append((f"learning rate {rate:g}, batch {size}", runs))
        return Cell(tuple(choices), target.figure, target.factor, paper)

    def tagged(
        self,
        folder: str,
        choice: str,
        part: str,
        *,
        model_dir: str,
        needs: Sequence[str] = (),
        paper: float | None = None,
    ) -> Cell:
        """Train taggers on the features of a frozen encoder; return the cell of a part."""
        places, scale = self.places, self.scale
        with_test = places.ner_test_file is not None
        name = self.add(
            Run(
                name=f"{folder}/features-{choice}",
                script="experiments/run_feature_based.py",
                flags=flags_of(
                    model_dir=model_dir,
                    train_file=places.get("ner_train_file"),
                    eval_file=places.get("ner_dev_file"),
                    test_file=places.ner_test_file if with_test else None,
                    features=choice,
                    lstm_size=scale.lstm_size,
                    num_train_epochs=scale.tagger_epochs,
                    max_seq_length=scale.recipe("ner").max_seq_length,
                    seeds=",".join(map(str, scale.seeds)),
                    train_batch_size=32,
                    cache_dir=self.path(f"{folder}/feature_cache"),
                ),
                needs=tuple(needs),
                result=_TAGGER_RESULT,
            )
        )
        figure = f"results/{choice}/seeds/*/{part}_f1"
        return Cell((("", (name,)),), figure, 1.0, paper, result=_TAGGER_RESULT)


def _folder_of(pretrained: str) -> str:
    """Return the folder of a pre-trained model, where what is made of it lies too."""
    return pretrained.rpartition("/")[0]


def predictions_of(length: int) -> int:
    """Return the most predictions of a sequence, as the original's README has it: 20 of 128."""
    return math.ceil(length * 0.15)


# --- cost -----------------------------------------------------------------------------------------


def flops_per_token(config: BertConfig, length: int, predictions: float, outputs: int) -> float:
    """Return the floating point operations of one training step, for each token.

    Products of matrices alone, forward and twice as much backward.

    Args:
        config: the model's.
        length: tokens of a sequence.
        predictions: rows of a sequence that go through the last layer.
        outputs: width of that layer: the vocabulary, or the labels.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * hidden * hidden + 2 * hidden * inner + 2 * length * hidden
    head = predictions / length * hidden * (hidden + outputs)
    return 3 * 2 * (config.num_hidden_layers * layer + head)


def _config(config: Mapping[str, Any], vocab_size: int) -> BertConfig:
    config = dict(config)
    if "hidden_size" in config:
        config.setdefault("intermediate_size", 4 * config["hidden_size"])
    return BertConfig(**{"vocab_size": vocab_size, **config})


def pretraining_flops(config: Mapping[str, Any], recipe: Pretraining, vocab_size: int) -> float:
    """Return the operations of a pre-training; a second phase has a tenth of the steps."""
    made = _config(config, vocab_size)
    phases = [(recipe.length, 1.0)]
    if recipe.second_length is not None:
        phases = [(recipe.length, 0.9), (recipe.second_length, 0.1)]
    total = 0.0
    for length, part in phases:
        predictions = length - 1 if made.left_to_right else predictions_of(length)
        tokens = part * recipe.steps * recipe.batch_size * length
        total += tokens * flops_per_token(made, length, predictions, vocab_size)
    return total


def finetuning_flops(
    config: Mapping[str, Any], recipe: Recipe, batch_size: int, target: Target
) -> float:
    """Return the operations of a fine-tuning, were all sequences of full length."""
    made = _config(config, 30_522)
    examples = (recipe.steps or 0) * batch_size or (recipe.epochs or 0) * target.num_examples
    length = recipe.max_seq_length
    return examples * length * flops_per_token(made, length, 1, 2)


# --- tables ---------------------------------------------------------------------------------------

_SMALL_NOTE = (
    "Small models, few steps and samples of the training sets: this shows that all of it runs, and "
    "its figures are not to be compared with the paper's."
)
_DEV_NOTE = "Ours are figures on dev; the paper's of this table are of the hidden test sets."
_SHARED_NOTE = "Rates and batch sizes are chosen on dev by the mean over seeds, as the paper did."


def _notes(scale: Scale, *notes: str) -> tuple[str, ...]:
    return (*((_SMALL_NOTE,) if scale.name == "small" else (_SHARED_NOTE,)), *notes)


def _models(places: Places) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (label, folder, configuration) of the pre-trained models that were given."""
    found = [("base", places.get("model_dir"))]
    if places.large_model_dir is not None:
        found.append(("large", places.large_model_dir))
    models = []
    for label, folder in found:
        path = pathlib.Path(folder) / "bert_config.json"
        path = path if path.exists() else path.with_name("config.json")
        if not path.exists():
            raise GridError(f"{folder}: expected a model directory, with bert_config.json")
        models.append((label, folder, BertConfig.from_json_file(path).to_dict()))
    return models


# Of a row of the paper: its name, layers and hidden size.
_ROWS_OF_THE_PAPER = {"base": ("BERT-BASE", 12, 768), "large": ("BERT-LARGE", 24, 1024)}


def _words(label: str, config: Mapping[str, Any]) -> str:
    """Return the name of a row, with the size of the model if it is not the paper's."""
    words, *size = _ROWS_OF_THE_PAPER[label]
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    return words if size == [layers, hidden] else f"L{layers}-H{hidden} (for {words})"


def _of_pretrained_models(
    grid: _Grid, papers: Mapping[str, Mapping[str, float | None]], targets: Sequence[str]
) -> tuple[Row, ...]:
    rows = []
    for label, folder, config in _models(grid.places):
        cells = (
            grid.finetuned(
                f"{grid.folder}/{label}",
                target,
                model_dir=folder,
                config=config,
                paper=papers[label].get(target),
            )
            for target in targets
        )
        rows.append(Row(_words(label, config), tuple(cells)))
    return tuple(rows)


def _table_1(grid: _Grid) -> Table:
    names = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc_f1", "rte")
    papers = {
        "base": dict(zip(names, (84.6, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4), strict=True)),
        "large": dict(zip(names, (86.7, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1), strict=True)),
    }
    rows = _of_pretrained_models(grid, papers, names)
    return Table(
        1,
        "GLUE",
        _notes(grid.scale, _DEV_NOTE),
        tuple(TARGETS[name].title for name in names),
        rows,
        tuple(grid.runs.values()),
    )


def _question_answering(grid: _Grid, number: int, title: str, name: str, papers: Any) -> Table:
    target = TARGETS[name]
    rows = []
    for label, folder, config in _models(grid.places):
        exact, f1 = papers[label]
        cell = grid.finetuned(
            f"{grid.folder}/{label}", name, model_dir=folder, config=config, paper=f1
        )
        key = "exact_match"
        rows.append(
            Row(
                f"{_words(label, config)}, single",
                (dataclasses.replace(cell, figure=key, paper=exact), cell),
            )
        )
    return Table(
        number,
        title,
        _notes(grid.scale),
        (target.title.replace("F1", "EM"), target.title),
        tuple(rows),
        tuple(grid.runs.values()),
    )


def _table_2(grid: _Grid) -> Table:
    papers = {"base": (80.8, 88.5), "large": (84.1, 90.9)}
    return _question_answering(grid, 2, "SQuAD 1.1, dev", "squad1", papers)


def _table_3(grid: _Grid) -> Table:
    papers = {"base": (None, None), "large": (78.7, 81.9)}
    return _question_answering(grid, 3, "SQuAD 2.0, dev", "squad2", papers)


def _table_4(grid: _Grid) -> Table:
    papers = {"base": {"swag": 81.6}, "large": {"swag": 86.6}}
    rows = _of_pretrained_models(grid, papers, ("swag",))
    runs = tuple(grid.runs.values())
    return Table(4, "SWAG, dev accuracy", _notes(grid.scale), ("SWAG",), rows, runs)


_NO_NSP = {"next_sentence_prediction": False}
_LEFT_TO_RIGHT = {**_NO_NSP, "left_to_right": True}
# Table 5: words, configuration, whether a BiLSTM is put on top, and the paper's figures.
_TASKS_OF_PRETRAINING = (
    ("BERT-BASE", {}, False, (84.4, 88.4, 86.7, 92.7, 88.5)),
    ("No NSP", _NO_NSP, False, (83.9, 84.9, 86.5, 92.6, 87.9)),
    ("LTR & No NSP", _LEFT_TO_RIGHT, False, (82.1, 84.3, 77.5, 92.1, 77.8)),
    ("+ BiLSTM", _LEFT_TO_RIGHT, True, (82.1, 84.1, 75.7, 91.6, 84.9)),
)


def _table_5(grid: _Grid) -> Table:
    names = ("mnli", "qnli", "mrpc", "sst2", "squad1")
    rows, curves = [], {}
    for words, config, with_lstm, papers in _TASKS_OF_PRETRAINING:
        pretrained = grid.pretraining(config)
        if not with_lstm:
            curves[words] = pretrained
        folder = _folder_of(pretrained)
        cells = (
            grid.finetuned(
                f"{folder}-bilstm" if with_lstm else folder,
                name,
                model_dir=grid.path(pretrained),
                needs=(pretrained,),
                config={**grid.scale.pretraining.config, **config},
                paper=paper,
                **({"bilstm": True} if with_lstm else {}),
            )
            for name, paper in zip(names, papers, strict=True)
        )
        rows.append(Row(words, tuple(cells)))
    return Table(
        5,
        "Pre-training tasks, dev",
        _notes(
            grid.scale,
            "A left-to-right model predicts every next piece, and a sentence is represented by its "
            "last token, since the first sees nothing but itself; the paper does not say which it "
            "took.",
        ),
        tuple(TARGETS[name].title for name in names),
        tuple(rows),
        tuple(grid.runs.values()),
        tuple(curves.items()),
        shown_model=curves["BERT-BASE"],
    )


_SIZES_OF_THE_PAPER = (
    ((3, 768, 12), (5.84, 77.9, 79.8, 88.4)),
    ((6, 768, 3), (5.24, 80.6, 82.2, 90.7)),
    ((6, 768, 12), (4.68, 81.9, 84.8, 91.3)),
    ((12, 768, 12), (3.99, 84.4, 86.7, 92.9)),
    ((12, 1024, 16), (3.54, 85.7, 86.9, 93.3)),
    ((24, 1024, 16), (3.23, 86.6, 87.8, 93.7)),
)


def _table_6(grid: _Grid) -> Table:
    names = ("mnli", "mrpc", "sst2")
    rows, curves, last = [], {}, ""
    for size, (paper_size, papers) in zip(grid.scale.sizes, _SIZES_OF_THE_PAPER, strict=True):
        layers, hidden, heads = size
        label = f"L{layers}-H{hidden}-A{heads}"
        config = {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
        }
        last = grid.pretraining(config)
        curves[label] = last
        perplexity = Cell(
            (("", (last,)),), "exp:masked_lm_loss", 1.0, papers[0], higher_is_better=False
        )
        cells = (
            grid.finetuned(
                _folder_of(last),
                name,
                model_dir=grid.path(last),
                needs=(last,),
                config=config,
                paper=paper,
            )
            for name, paper in zip(names, papers[1:], strict=True)
        )
        words = label if size == paper_size else f"{label} (for L{'-'.join(map(str, paper_size))})"
        rows.append(Row(words, (perplexity, *cells)))
    return Table(
        6,
        "Model size, dev",
        _notes(grid.scale, "Perplexity is that of masked pieces in held-out text."),
        ("LM perplexity", *(TARGETS[name].title for name in names)),
        tuple(rows),
        tuple(grid.runs.values()),
        tuple(curves.items()),
        shown_model=last,
    )


# Table 7: feature choice and the paper's dev F1.
_FEATURES_OF_THE_PAPER = (
    ("embeddings", "Embeddings", 91.0),
    ("second_to_last", "Second-to-Last Hidden", 95.6),
    ("last", "Last Hidden", 94.9),
    ("weighted_sum_last_four", "Weighted Sum Last Four Hidden", 95.9),
    ("concat_last_four", "Concat Last Four Hidden", 96.1),
    ("weighted_sum_all", "Weighted Sum All Layers", 95.5),
)


def _table_7(grid: _Grid) -> Table:
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
    return Table(
        7,
        "Named entities, F1",
        _notes(grid.scale, "The paper's are of CoNLL-2003."),
        ("dev F1", "test F1")[: len(parts)],
        tuple(rows),
        tuple(grid.runs.values()),
    )


# Table 8: fractions masked, kept and random, and the paper's figures.
_MASKS_OF_THE_PAPER = (
    ((80, 10, 10), (84.2, 95.4, 94.9)),
    ((100, 0, 0), (84.3, 94.9, 94.0)),
    ((80, 0, 20), (84.1, 95.2, 94.6)),
    ((80, 20, 0), (84.4, 95.2, 94.7)),
    ((0, 20, 80), (83.7, 94.8, 94.6)),
    ((0, 0, 100), (83.6, 94.9, 94.6)),
)


def _table_8(grid: _Grid) -> Table:
    rows, curves = [], {}
    choice = "concat_last_four"
    if (grid.scale.pretraining.config.get("num_hidden_layers") or 12) < 4:
        choice = "last"  # a small model has not four layers
    for (masked, kept, random), papers in _MASKS_OF_THE_PAPER:
        pretrained = grid.pretraining(
            {}, mask_prob=masked / 100, keep_prob=kept / 100, random_prob=random / 100
        )
        curves[f"{masked}/{kept}/{random}"] = pretrained
        folder = _folder_of(pretrained)
        given: dict[str, Any] = {"model_dir": grid.path(pretrained), "needs": (pretrained,)}
        config = grid.scale.pretraining.config
        rows.append(
            Row(
                f"{masked}% [MASK], {kept}% same, {random}% random",
                (
                    grid.finetuned(folder, "mnli", paper=papers[0], config=config, **given),
                    grid.finetuned(folder, "ner", paper=papers[1], config=config, **given),
                    grid.tagged(folder, choice, "eval", paper=papers[2], **given),
                ),
            )
        )
    return Table(
        8,
        "Masking, dev",
        _notes(grid.scale, f"Features of the last column: {choice.replace('_', ' ')}."),
        ("MNLI fine-tuned", "NER fine-tuned", "NER features"),
        tuple(rows),
        tuple(grid.runs.values()),
        tuple(curves.items()),
        shown_model=next(iter(curves.values())),
    )


_MAKERS: dict[int, Callable[[_Grid], Table]] = {
    1: _table_1,
    2: _table_2,
    3: _table_3,
    4: _table_4,
    5: _table_5,
    6: _table_6,
    7: _table_7,
    8: _table_8,
}
NUMBERS = tuple(_MAKERS)


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
    if number not in _MAKERS:
        raise GridError(f"table: expected 1 to 8, got {number}")
    return _MAKERS[number](_Grid(number, scale, places, root))
