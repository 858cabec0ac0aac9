"""What the tables of the paper are made with: tasks, recipes of training, and where the data is.

Two scales: "full" is the paper's recipe, "small" the same code with small models on samples.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from bert_tf.config import BertConfig
from bert_tf.options import option
from experiments.paper_tables.grid import GridError, flags_of


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
class Recipe:
    """How a task is fine-tuned; all combinations of rates and batch sizes are tried.

    Few steps have few steps of warm-up, in which BERT's Adam, without its bias correction, takes
    steps of several times the rate: small models of 100 to 400 steps stayed at a constant answer.
    """

    learning_rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    epochs: float | None = None
    steps: int | None = None
    max_seq_length: int = 128
    bias_correction: bool = False


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How a model is pre-trained; of two phases where `second_length` is given.

    Attributes:
        config: what differs from BERT-BASE's configuration.
        batch_size: sequences of a step.
        steps: all of them.
        learning_rate: after the warm-up.
        warmup_steps: in which it rises.
        length: pieces of a sequence.
        second_length: of the last tenth of the steps.
        dupe_factor: how often pairs of segments are drawn from the text.
        log_steps: steps between two log lines.
        masked_lm_prob: share of the pieces that is predicted in training; 15% in held-out text.
        dynamic_masking: masks are drawn in each epoch anew.
        precision: what is computed in, as --precision of run_pretraining.py has it.
        jit_compile: likewise.
        next_sentence_weight: likewise.
        seeds: each trains a model of its own.
    """

    config: Mapping[str, Any]
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    length: int
    second_length: int | None = None
    dupe_factor: int = 10
    log_steps: int = 100
    masked_lm_prob: float = 0.15
    dynamic_masking: bool = False
    precision: str = "float32"
    jit_compile: str = "auto"
    next_sentence_weight: float = 1.0
    seeds: tuple[int, ...] = (12345,)

    def predictions(self, length: int) -> int:
        """Return the most predictions of a sequence, as the original's README has it: 20 of 128."""
        return math.ceil(length * max(self.masked_lm_prob, 0.15))  # held-out text has 15%


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        name: "full" or "small".
        words: what a report's title says of it.
        seeds: of fine-tuning and of taggers.
        recipes: name of a target -> recipe; "" for all others.
        own_recipes: in their place for models that a table has pre-trained itself; none if alike.
        pretraining: of tables 5, 6 and 8; fine-tuning has all its seeds from each model.
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
    own_recipes: Mapping[str, Recipe] | None = None

    def recipe(self, target: str, *, own: bool = False) -> Recipe:
        """Return the recipe of a target, for a given model or for one of the table's own."""
        recipes = self.recipes if self.own_recipes is None or not own else self.own_recipes
        return recipes.get(target, recipes[""])


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


def _few_steps(batch_size: int, steps: int, max_seq_length: int, rate: float = 1e-4) -> Recipe:
    return Recipe(
        (rate,), (batch_size,), steps=steps, max_seq_length=max_seq_length, bias_correction=True
    )


SMALL = Scale(
    name="small",
    words="small models on samples",
    seeds=(1, 2, 3),
    recipes={
        "": _few_steps(32, 120, 64),
        "squad1": _few_steps(16, 120, 128),
        "squad2": _few_steps(16, 120, 128),
        "swag": _few_steps(16, 80, 64),
        "ner": _few_steps(32, 200, 64),
    },
    pretraining=Pretraining(
        # What leaves the plateau at which only the frequencies of pieces are known, in minutes:
        # larger initial weights than those made for 768 units, no dropout, more predictions, and
        # less weight on a loss of one label a sequence, whose gradient is noise in batches of 32.
        {
            "num_hidden_layers": 2,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "initializer_range": 0.05,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        batch_size=32,
        steps=6000,
        learning_rate=2e-3,
        warmup_steps=600,
        length=128,
        dupe_factor=2,
        masked_lm_prob=0.4,
        dynamic_masking=True,
        precision="auto",
        jit_compile="pointwise",
        next_sentence_weight=0.1,
    ),
    sizes=((1, 128, 2), (2, 128, 1), (2, 128, 2), (3, 128, 2), (3, 192, 3), (4, 256, 4)),
    lstm_size=64,
    tagger_epochs=4,
    vocab_size=8000,
    own_recipes={  # such small models take high rates
        "": _few_steps(32, 600, 128, 5e-4),
        "mrpc": _few_steps(32, 300, 128, 5e-4),
        "squad1": _few_steps(32, 600, 128, 5e-4),
        "ner": _few_steps(32, 400, 64, 2e-3),
    },
)

SCALES = {scale.name: scale for scale in (FULL, SMALL)}


def _official(words: str) -> str | None:
    return option(None, f"Official file: {words}.", path="local")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where data and models are; what a table does not need may be None."""

    glue_dir: str | None = option(
        None, "Folder with a folder for each task of GLUE, by its name.", path="local", group="data"
    )
    squad1_train_file: str | None = _official("squad1, train")
    squad1_dev_file: str | None = _official("squad1, dev")
    squad2_train_file: str | None = _official("squad2, train")
    squad2_dev_file: str | None = _official("squad2, dev")
    swag_train_file: str | None = _official("swag, train")
    swag_dev_file: str | None = _official("swag, dev")
    ner_train_file: str | None = _official("ner, train")
    ner_dev_file: str | None = _official("ner, dev")
    ner_test_file: str | None = _official("ner, test")
    # data_prep/extract_corpus.py makes such text.
    corpus_files: str | None = option(
        None,
        "Text to pre-train on, one sentence a line and an empty line between documents; files and "
        "globs, comma separated.",
        path="local",
    )
    heldout_files: str | None = option(
        None, "Other documents, to evaluate pre-training on.", path="local"
    )
    vocab_file: str | None = option(
        None, "Vocabulary at full scale; small models learn theirs.", path="local"
    )
    model_dir: str | None = option(
        None, "Pre-trained model to fine-tune.", path="model", group="model"
    )
    large_model_dir: str | None = option(
        None, "A second one, for the rows of BERT-LARGE.", path="model"
    )

    def get(self, name: str) -> str:
        """Return a place.

        Raises:
            GridError: it was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise GridError(f"--{name}: this table needs it")
        return value


def model_config(config: Mapping[str, Any], vocab_size: int) -> BertConfig:
    """Return the configuration of a model of which some values are given."""
    config = dict(config)
    if "hidden_size" in config:
        config.setdefault("intermediate_size", 4 * config["hidden_size"])
    return BertConfig(**{"vocab_size": vocab_size, **config})
