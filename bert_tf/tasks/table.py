"""The tasks of the paper: what each is, how it is scored, and the settings it was fine-tuned with.

One row of TASKS says all that readers, heads, metrics and runners need to know of a task. A task
on one's own data is a row made by `custom_task`.

References: BERT paper (arXiv 1810.04805 v2), section 4 and appendices A.3 and B.1; for the order
of labels run_classifier.py of google-research/bert, for names of metrics gluebenchmark.com.
"""

import dataclasses
import re
from typing import Any

from bert_tf.tasks.kinds import get_kind


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: key in TASKS.
        kind: key of KINDS.
        labels: names of the labels, a label's id is its place; None where there are none
            (regression, spans, choices) or where the training data name them.
        metrics: names of the metrics that are reported.
        selection_metric: the one of them by which runs are compared.
        has_pairs: whether an example has two texts.
        folder: the data's folder in the usual GLUE_DIR and such.
        train_split: split to train on; None if there is none.
        eval_splits: labelled splits to evaluate on, each with a score of its own.
        test_splits: splits whose labels are not public, to predict.
        tfds_name: name in TensorFlow Datasets; None if it is not there.
        learning_rates: the ones that the paper chose from on the development set.
        num_train_epochs: the paper's number of epochs.
        train_batch_size: the paper's batch size.
        max_seq_length: tokens of a sequence: the released code's setting for the task.
        num_choices: continuations of a multiple choice example, else None.
        model_task: task whose model predicts this one, for a task that has no training data.

    Raises:
        ValueError: a kind, label or metric that cannot be.
    """

    name: str
    kind: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    selection_metric: str
    has_pairs: bool
    folder: str
    train_split: str | None = "train"
    eval_splits: tuple[str, ...] = ("dev",)
    test_splits: tuple[str, ...] = ("test",)
    tfds_name: str | None = None
    learning_rates: tuple[float, ...] = (5e-5, 4e-5, 3e-5, 2e-5)
    num_train_epochs: float = 3.0
    train_batch_size: int = 32
    max_seq_length: int = 128
    num_choices: int | None = None
    model_task: str | None = None

    def __post_init__(self):
        least_labels = get_kind(self.kind).least_labels
        if self.selection_metric not in self.metrics:
            raise ValueError(
                f"selection_metric must be one of {', '.join(self.metrics)}; "
                f"got {self.selection_metric!r}"
            )
        if self.labels is not None:
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            if twice:
                raise ValueError(f"labels must be distinct, got twice: {', '.join(twice)}")
            # Each has a line of labels.txt.
            wrong = [label for label in self.labels if label.splitlines() != [label]]
            if wrong:
                raise ValueError(f"labels: expected names of one line each, got {wrong[0]!r}")
            if len(self.labels) < least_labels:
                raise ValueError(
                    f"labels: {self.kind} needs at least {least_labels}, got {list(self.labels)}"
                )


_NLI_LABELS = ("contradiction", "entailment", "neutral")
_ENTAILMENT_LABELS = ("entailment", "not_entailment")


def _glue(
    folder: str,
    tfds_name: str,
    metrics: tuple[str, ...] = ("accuracy",),
    labels: tuple[str, ...] | None = ("0", "1"),
    **others: Any,
) -> Task:
    """Make the row of a task of GLUE: where no others say so, classes of pairs of sentences."""
    usual = {"kind": "classification", "selection_metric": metrics[0], "has_pairs": True}
    names = {"name": folder.lower(), "folder": folder, "tfds_name": f"glue/{tfds_name}"}
    return Task(metrics=metrics, labels=labels, **{**names, **usual, **others})


def _squad(version: str, **others: Any) -> Task:
    """Make the row of a version of SQuAD; 384 tokens is run_squad.py's default."""
    return Task(
        name=f"squad{version}",
        kind="span",
        labels=None,
        metrics=("exact_match", "f1"),
        selection_metric="f1",
        has_pairs=True,
        folder="SQuAD",
        test_splits=(),
        tfds_name=f"squad/v{version}",
        learning_rates=(5e-5,),
        max_seq_length=384,
        **others,
    )


# The paper fine-tuned all of GLUE alike (section 4.1): batch 32, 3 epochs, the best of four
# learning rates; its metrics are F1 for QQP and MRPC, Spearman for STS-B, accuracy for the rest
# (and Matthews for CoLA, GLUE's own). 128 tokens is run_classifier.py's setting.
_ROWS = (
    _glue("CoLA", "cola", ("matthews_correlation", "accuracy"), has_pairs=False),
    _glue("SST-2", "sst2", has_pairs=False),
    _glue("MRPC", "mrpc", ("f1", "accuracy")),
    _glue(
        "STS-B",
        "stsb",
        ("pearson_correlation", "spearman_correlation"),
        None,
        kind="regression",
        selection_metric="spearman_correlation",
    ),
    _glue("QQP", "qqp", ("f1", "accuracy")),
    _glue(
        "MNLI",
        "mnli",
        labels=_NLI_LABELS,
        eval_splits=("dev_matched", "dev_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
    ),
    _glue("QNLI", "qnli", labels=_ENTAILMENT_LABELS),
    _glue("RTE", "rte", labels=_ENTAILMENT_LABELS),
    # The paper trained no model for it but predicted the majority class (appendix B.1).
    _glue("WNLI", "wnli"),
    # GLUE's diagnostic set: predicted by a model of MNLI, scored on the server only.
    _glue(
        "AX",
        "ax",
        ("matthews_correlation",),
        _NLI_LABELS,
        train_split=None,
        eval_splits=(),
        model_task="mnli",
    ),
    # Section 4.4; the paper does not give the length.
    Task(
        name="swag",
        kind="multiple_choice",
        labels=None,
        metrics=("accuracy",),
        selection_metric="accuracy",
        has_pairs=True,
        folder="SWAG",
        learning_rates=(2e-5,),
        train_batch_size=16,
        num_choices=4,
    ),
    _squad("1.1"),  # section 4.2
    _squad("2.0", num_train_epochs=2.0, train_batch_size=48),  # section 4.3
    # Section 5.3; learning rates and batch are of appendix A.3, whose lists hold for all tasks.
    # The tags are those of the training file.
    Task(
        name="ner",
        kind="token_classification",
        labels=None,
        metrics=("entity_f1",),
        selection_metric="entity_f1",
        has_pairs=False,
        folder="NER",
        tfds_name="conll2003",
        learning_rates=(5e-5, 3e-5, 2e-5),
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}

# Other names in use; those that differ only in case and signs (sst2, SST_2, stsb) need no entry.
_ALIASES = {
    "sst": "sst-2",
    "diagnostic": "ax",
    "squad1": "squad1.1",
    "squadv1": "squad1.1",
    "squadv11": "squad1.1",
    "squad2": "squad2.0",
    "squadv2": "squad2.0",
    "squadv20": "squad2.0",
    "conll2003": "ner",
}


def _plain(name: str) -> str:
    """Return a name without case and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def get_task(name: str) -> Task:
    """Find a task by name; case, hyphens, underscores and dots do not matter.

    Args:
        name: such as "MRPC", "sst2", "SST-2", "squad_v1.1".

    Returns:
        Its row of TASKS.

    Raises:
        ValueError: no such task; the message lists all.
    """
    plain = _plain(name)
    for known, task in TASKS.items():
        if plain == _plain(known):
            return task
    if plain in _ALIASES:
        return TASKS[_ALIASES[plain]]
    raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")


def custom_task(
    kind: str, labels: tuple[str, ...] | None, has_pairs: bool, name: str = "custom"
) -> Task:
    """Make the row of a task on one's own data, with GLUE's settings.

    Args:
        kind: key of KINDS.
        labels: as in Task; two or more for classification, one or more for multi_label.
        has_pairs: whether an example has two texts.
        name: the task's name, which also names its folder.

    Returns:
        The task, scored by its kind's metrics; classification also by f1, of several labels
        macro_f1.

    Raises:
        ValueError: a kind that is not there, or labels that do not suit it.
    """
    row = get_kind(kind)
    if row.least_labels and labels is None:
        raise ValueError(f"labels: {kind} needs the names of its labels")
    metrics = row.metrics
    if row.binary_metrics is not None and labels is not None and len(labels) == 2:
        metrics = row.binary_metrics
    return Task(
        name=name,
        kind=kind,
        labels=labels,
        metrics=metrics,
        selection_metric=metrics[0],
        has_pairs=has_pairs,
        folder=name,
    )
