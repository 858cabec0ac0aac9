"""The splits of a task as the fine-tuning scripts use them: records, predictions and figures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from bert_tf.tasks.kinds import get_kind
from data_prep.finetuning.flags import BadExamples, extra_settings
from data_prep.finetuning.prepare import TokenizerSettings, prepare
from experiments.command_line.exit_status import InputError
from experiments.finetuning.initial_model import StartingPoint

# === Records ===


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
        from bert_tf.input_pipeline.finetuning import TaskRecords

        made = self.made[split]
        return TaskRecords(
            made.record_file,
            self.task.kind,
            made.features,
            num_choices=self.task.num_choices,
            lengths=np.load(made.lengths_file),
            vocab_size=vocab_size,
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the records that a run depends on: of training, and of choosing weights."""
        splits = [split for split in self.of("train") + self.of("dev") if split in self.made]
        return digest_of(*(self.made[split].manifest["fingerprint"] for split in splits))

    def of(self, what: str) -> list[str]:
        """Names of the splits for "train", "dev" or "test"."""
        return [split for split in self.sources if split.partition("_")[0] == what]


def make_records(
    task: Any, sources: Sequence[Any], values: flags.FlagValues, start: StartingPoint
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
        bad = BadExamples(values.max_bad_shown)
        made[source.split] = prepare(
            task,
            source,
            TokenizerSettings(start.vocab_file, start.do_lower_case),
            values.max_seq_length,
            values.cache_dir or os.path.join(values.output_dir, "records"),
            values.num_workers or None,
            bad if values.skip_bad_examples else None,
            extra=extra_settings(values, task),
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


# === Figures ===


def figures_of(task: Any, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics and the mean loss of all examples."""
    from bert_tf.tasks.metrics import METRICS
    from bert_tf.training.objectives import LOSSES

    kind = get_kind(task.kind)
    predictions = kind.decide(logits)
    figures = {name: METRICS[name](predictions, labels) for name in task.metrics}
    total, weight = LOSSES[kind.loss].figures(logits, labels, None)["loss"]
    return {**figures, "loss": float(total) / float(weight)}


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
        labels = next(iter(self.labels.values()))
        return get_kind(self.task.kind).constant_figure(labels, self.task.selection_metric)


def predict(records: Any, model: Any, values: flags.FlagValues, *, batch_size: int) -> np.ndarray:
    """Return the logits of all records, float32 [N, K]."""
    from bert_tf.training.trainer import resolve_jit_compile

    return records.predict(
        model,
        batch_size=batch_size,
        jit_compile=resolve_jit_compile(values.jit_compile),
        group_by_length=values.group_by_length,
        pad_to_max=values.pad_to_max_seq_length,
    )["logits"]


def probabilities_of(kind: str, logits: np.ndarray) -> np.ndarray:
    """Return what test_results.tsv holds: probabilities [N, K], or the number of a regression."""
    return get_kind(kind).probabilities(logits.astype(np.float64))


def digest_of(*parts: Any) -> str:
    """Return a short digest of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def leave_out(message: str) -> None:
    """Take the message of a bad example that was told of when the records were made."""
