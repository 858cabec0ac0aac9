r"""Fine-tunes BERT on GLUE, or on sentences and pairs of one's own, evaluates and predicts.

    python experiments/run_classifier.py --task_name=MRPC --do_train --do_eval \
        --data_dir=$GLUE_DIR/MRPC --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/mrpc

    python experiments/run_classifier.py --train_file=train.csv --dev_file=dev.csv \
        --text_column=review --label_column=stars --do_train --do_eval \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/reviews

Flags and defaults are those of google-research/bert's run_classifier.py wherever it has the flag,
so its --vocab_file, --bert_config_file and --init_checkpoint work in place of --model_dir. The same
command continues a run that was stopped. --seeds=1,2,3 trains a run each, and the best is kept.

In the output folder: the model (see experiments/finetuning.py), eval_results.txt and .json,
confusion_matrix.png, curves.png; of --do_predict test_results.tsv with probabilities as the
original writes them, and for GLUE the file to submit, for own data predictions.csv.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from data_prep import create_finetuning_data, finetuning_data, glue  # noqa: E402
from experiments import finetuning as runs  # noqa: E402
from experiments.finetuning import InputError  # noqa: E402

FLAGS = flags.FLAGS


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    runs.define_flags(values)
    create_finetuning_data.define_data_flags(values)
    flags.DEFINE_bool(
        "majority_class",
        None,
        "Predict the commonest label of the training set; by default for WNLI alone, as the paper.",
        flag_values=values,
    )


# --- data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a task.

    Attributes:
        task: the task, with its labels.
        sources: split -> where its examples come from.
        made: split -> its records.
    """

    task: Any
    sources: Mapping[str, Any]
    made: Mapping[str, Any]

    def records(self, split: str, vocab_size: int) -> Any:
        """Open the records of a split as `finetuning_pipeline.TaskRecords`."""
        from bert_tf.finetuning_pipeline import TaskRecords

        made = self.made[split]
        return TaskRecords(
            made.record_file,
            self.task.kind,
            made.features,
            num_choices=self.task.num_choices,
            lengths=np.load(made.lengths_file),
            vocab_size=vocab_size,
        )

    def of(self, what: str) -> list[str]:
        """Names of the splits for "train", "dev" or "test"."""
        return [split for split in self.sources if split.partition("_")[0] == what]


def prepare(values: flags.FlagValues, start: runs.StartingPoint) -> Data:
    """Make the records that the flags ask for, or find them made.

    Without a training file the labels of one's own tables are those of the fine-tuned model.

    Raises:
        InputError, ValueError, OSError: bad flags or data.
    """
    own = values.task_name is None and values.kind != "regression" and len(values.label_column) < 2
    if own and not (values.do_train or values.labels or values.train_file):
        values.labels = list(runs.load_trained(values, start, values.kind).labels or ())
    return make_records(*create_finetuning_data.sources_from_flags(values), values, start)


def make_records(
    task: Any, sources: Sequence[Any], values: flags.FlagValues, start: runs.StartingPoint
) -> Data:
    """Make the records of the splits that --do_train, --do_eval and --do_predict need.

    Raises:
        InputError, ValueError, OSError: bad data.
    """
    wanted = [
        what
        for what, is_wanted in (
            ("train", values.do_train),
            ("dev", values.do_eval),
            ("test", values.do_predict),
        )
        if is_wanted
    ]
    by_name = {source.split: source for source in sources}
    data = Data(task, by_name, {})
    for what in wanted:
        if not data.of(what):
            raise InputError(f"{task.name}: no {what} split among {', '.join(by_name) or 'none'}")
    made = {}
    for source in sources:
        if source.split.partition("_")[0] not in wanted:
            continue
        if not source.labelled and not source.split.startswith("test"):
            raise InputError(f"{source.files[0]}: the {source.split} split has no labels")
        bad = create_finetuning_data.BadExamples(values.max_bad_shown)
        made[source.split] = finetuning_data.prepare(
            task,
            source,
            finetuning_data.TokenizerSettings(start.vocab_file, start.do_lower_case),
            values.max_seq_length,
            values.cache_dir or os.path.join(values.output_dir, "records"),
            values.num_workers or None,
            bad if values.skip_bad_examples else None,
            extra=create_finetuning_data.extra_settings(values, task),
        )
        counts = made[source.split].manifest["counts"]
        several = counts["records"] != counts["examples"]
        print(
            f"{source.split}: {counts['examples']:,} examples, "
            + (f"{counts['records']:,} sequences, " if several else "")
            + f"{counts['tokens'] / max(1, counts['records']):.1f} tokens each, "
            f"{counts['full_length_records']:,} of full length"
            + (f"; left out {bad.count:,} bad ones" if bad.count else "")
        )
    return Data(task, by_name, made)


# --- figures --------------------------------------------------------------------------------------


def decide(kind: str, logits: np.ndarray) -> np.ndarray:
    """Turn logits [N, K] into predictions: ids [N], numbers [N], or 0 and 1 [N, K]."""
    if kind == "regression":
        return logits[:, 0]
    if kind == "multi_label":
        return (logits > 0).astype(np.int64)
    return logits.argmax(axis=-1)


def loss_of(kind: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean loss of all examples."""
    from bert_tf import losses

    function = {"regression": losses.regression_loss, "multi_label": losses.multi_label_loss}
    total, weight = function.get(kind, losses.classification_loss)(logits, labels)
    return float(total) / float(weight)


def figures_of(task: Any, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics and the loss."""
    from bert_tf.metrics import METRICS

    predictions = decide(task.kind, logits)
    figures = {name: METRICS[name](predictions, labels) for name in task.metrics}
    return {**figures, "loss": loss_of(task.kind, logits, labels)}


def constant_figure(task: Any, labels: np.ndarray) -> float | None:
    """Return what the best constant answer has in the selection metric."""
    from bert_tf.metrics import METRICS

    if task.kind == "regression":
        return 0.0
    if task.kind == "multi_label":
        return None
    answers = [np.full_like(labels, label) for label in np.unique(labels)]
    return max(METRICS[task.selection_metric](answer, labels) for answer in answers)


class Evaluator:
    """Figures of a model on the dev splits; of MNLI, the first split's carry no suffix."""

    def __init__(self, data: Data, values: flags.FlagValues, vocab_size: int):
        self.task, self.values = data.task, values
        self.splits = {split: data.records(split, vocab_size) for split in data.of("dev")}
        self.labels = {split: records.labels() for split, records in self.splits.items()}
        self.logits: dict[str, np.ndarray] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the figures of a model, and keep its logits."""
        figures: dict[str, float] = {}
        for number, (split, records) in enumerate(self.splits.items()):
            self.logits[split] = predict(
                records, model, self.values, batch_size=self.values.eval_batch_size
            )
            suffix = f"_{split.partition('_')[2]}" if number else ""
            found = figures_of(self.task, self.logits[split], self.labels[split])
            figures |= {f"{name}{suffix}": value for name, value in found.items()}
        return figures

    @property
    def baseline(self) -> float | None:
        """The selection metric of a constant answer."""
        return constant_figure(self.task, next(iter(self.labels.values())))


def predict(records: Any, model: Any, values: flags.FlagValues, *, batch_size: int) -> np.ndarray:
    """Return the logits of all records, float32 [N, K]."""
    from bert_tf.training import resolve_jit_compile

    return records.predict(
        model,
        batch_size=batch_size,
        jit_compile=resolve_jit_compile(values.jit_compile),
        group_by_length=values.group_by_length,
        pad_to_max=values.pad_to_max_seq_length,
    )["logits"]


# --- predictions ----------------------------------------------------------------------------------


def probabilities_of(kind: str, logits: np.ndarray) -> np.ndarray:
    """Return what test_results.tsv holds: probabilities [N, K], or the number of a regression."""
    from scipy import special

    logits = logits.astype(np.float64)
    if kind == "regression":
        return logits
    return special.expit(logits) if kind == "multi_label" else special.softmax(logits, axis=-1)


def write_predictions(
    data: Data, split: str, logits: np.ndarray, values: flags.FlagValues, majority: str | None
) -> list[pathlib.Path]:
    """Write test_results.tsv, and the submission of GLUE or predictions.csv of own data."""
    task, folder = data.task, pathlib.Path(values.output_dir)
    suffix = split.removeprefix("test")
    probabilities = probabilities_of(task.kind, logits)
    paths = [folder / f"test_results{suffix}.tsv"]
    with open(paths[0], "w", encoding="utf-8") as stream:
        stream.writelines("\t".join(map(str, row)) + "\n" for row in probabilities.tolist())
    decided = decide(task.kind, logits)
    examples = list(data.sources[split].read(_ignore if values.skip_bad_examples else None, None))
    if values.task_name is not None:
        answers = decided if majority is None else [majority] * len(examples)
        paths.append(folder / glue.submission_file_name(task, split))
        glue.write_submission(paths[-1], task, examples, answers)
        return paths
    paths.append(folder / f"predictions{suffix}.csv")
    labels = task.labels or ()
    with open(paths[-1], "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "prediction", *(f"probability of {label}" for label in labels)])
        for example, answer, row in zip(examples, decided, probabilities, strict=True):
            if task.kind == "multi_label":
                names = [label for label, holds in zip(labels, answer, strict=True) if holds]
                shown: Any = values.label_separator.join(names)
            else:
                shown = float(answer) if task.kind == "regression" else labels[int(answer)]
            numbers = row.tolist() if labels else []
            writer.writerow([example.guid, shown, *(f"{number:.6g}" for number in numbers)])
    return paths


def _ignore(message: str) -> None:
    """Leave a bad example out, as when the records were made."""


# --- the script -----------------------------------------------------------------------------------


def run(values: flags.FlagValues) -> None:
    """Train, evaluate and predict as the flags say.

    Raises:
        InputError, ValueError, OSError: bad flags, data or model; one line says what.
    """
    began = time.time()
    runs.check_flags(values)
    folder = pathlib.Path(values.output_dir)
    start = runs.starting_point(values)
    data = prepare(values, start)
    task, vocab_size = data.task, start.config.vocab_size
    evaluator = Evaluator(data, values, vocab_size) if values.do_eval else None
    majority = _majority(data, values)
    evaluated = data.of("dev") if evaluator else []
    job = runs.Job(
        kind=task.kind,
        labels=task.labels,
        records=data.records("train", vocab_size) if values.do_train else None,
        num_examples=data.made["train"].num_examples if values.do_train else 0,
        fingerprint=runs.digest_of(
            *(data.made[split].manifest["fingerprint"] for split in data.of("train") + evaluated)
        )
        if values.do_train
        else "",
        evaluate=evaluator,
        selection_metric=task.selection_metric,
        baseline=evaluator.baseline if evaluator else None,
    )
    model, step = None, 0
    if values.do_train:
        print(f"{task.name}: begins with {start.description}")
        finished = runs.train_all(job, start, values)
        runs.report_runs(job, finished, folder)
        step = runs.best_run(job, finished).best_step
        start = dataclasses.replace(start, checkpoint=_own(folder))
    if values.do_eval or values.do_predict:
        loaded = runs.load_trained(values, start, task.kind)
        model = loaded.model
        _check_labels(task, loaded)
    if evaluator:
        figures = evaluator(model)
        results = {f"eval_{name}": value for name, value in figures.items()}
        runs.write_results(folder, {**results, "global_step": step, "loss": figures["loss"]})
        print("evaluation:")
        rows = [(name, f"{value:.6g}") for name, value in results.items()]
        if job.baseline is not None:
            rows.append((f"{job.selection_metric} of a constant", f"{job.baseline:.6g}"))
        runs.print_table(rows)
        _draw(evaluator, folder)
    if values.do_predict:
        for split in data.of("test"):
            records = data.records(split, vocab_size)
            logits = predict(records, model, values, batch_size=values.predict_batch_size)
            for path in write_predictions(data, split, logits, values, majority):
                print(f"wrote {path}")
    print(f"{folder}: {time.time() - began:.0f} s in all")


def _own(folder: pathlib.Path) -> Any:
    from bert_tf.checkpoint_formats import open_checkpoint

    return open_checkpoint(folder)


def _check_labels(task: Any, loaded: Any) -> None:
    if task.labels is not None and loaded.labels is not None and loaded.labels != task.labels:
        raise InputError(
            f"the model's labels are {', '.join(loaded.labels)}, the task's "
            f"{', '.join(task.labels)}"
        )
    found, expected = loaded.model.output_shape[-1], len(task.labels) if task.labels else 1
    if found != expected:
        raise InputError(
            f"the model has {found} outputs, and the task, {task.kind}, needs {expected}"
        )


def _majority(data: Data, values: flags.FlagValues) -> str | None:
    """Return the label to predict for all, where that is asked for."""
    wanted = values.majority_class
    if wanted is None:
        wanted = data.task.name == "wnli"
    if not wanted or not values.do_predict:
        return None
    if data.task.kind != "classification" or not data.of("train"):
        raise InputError("majority_class: needs a training set with one label for each example")
    labels = (example.label for example in data.sources["train"].read(None, None))
    label = glue.majority_label(labels)
    logging.warning("%s: predicts %s, the commonest label, for all", data.task.name, label)
    return label


def _draw(evaluator: Evaluator, folder: pathlib.Path) -> None:
    from experiments.plot_predictions import plot_confusion, plot_regression

    task = evaluator.task
    for split, logits in evaluator.logits.items():
        labels, suffix = evaluator.labels[split], split.removeprefix("dev")
        decided = decide(task.kind, logits)
        if task.kind == "classification":
            plot_confusion(labels, decided, task.labels, folder / f"confusion_matrix{suffix}.png")
        elif task.kind == "regression":
            plot_regression(labels, decided, folder / f"regression{suffix}.png")


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return runs.exit_on_error("run_classifier.py", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
