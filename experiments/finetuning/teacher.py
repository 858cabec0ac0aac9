"""The teacher of a student: found, compared with the task, and loaded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from bert_tf.models.variables import config_of
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.trained_task import read_trained_task
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.training.distillation import (
    DistillationObjective,
    check_layers,
    check_settings,
    copy_layers,
)
from bert_tf.training.objectives import FineTuningObjective
from bert_tf.training.trainer import set_precision
from bert_tf.weights.load import load_model
from experiments.command_line.distillation_options import DistillationOptions
from experiments.command_line.exit_status import InputError
from experiments.command_line.model_options import ModelOptions
from experiments.finetuning.initial_model import InitialModel, initial_model
from experiments.finetuning.options import FineTuningOptions


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher that fits a task.

    Attributes:
        found: where its weights lie.
        options: how much is learnt from it.
        kind: of the task.
    """

    found: InitialModel
    options: DistillationOptions
    kind: str

    @property
    def gives_layers(self) -> bool:
        """Whether the student begins with layers of it."""
        return bool(self.options.student_layers)

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's result depends on."""
        return {
            "teacher": self.found.weights_digest,
            "teacher_config": self.found.config.to_dict(),
            "temperature": self.options.distill_temperature,
            "alpha": self.options.distill_alpha,
            "layers": list(self.options.student_layers),
        }

    def teach(self, student: keras.Model, task: FineTuningObjective) -> DistillationObjective:
        """Load the teacher, give the student its layers where that is asked for, and return both.

        Of a run with a strategy this is called within its scope.
        """
        model = load_model(self.found.checkpoint, kind=get_kind(self.kind).head).model
        if self.gives_layers:
            copy_layers(model, student, self.options.student_layers)
        options = self.options
        return DistillationObjective(
            task, model, options.distill_temperature, options.distill_alpha
        )


def student_or_initial(options: FineTuningOptions) -> InitialModel:
    """Find the model that training begins with: layers of a teacher, or `initial_model`.

    Raises:
        InputError: layers that the teacher does not have, or another model beside them.
        ValueError, OSError: as of `initial_model`.
    """
    layers, model = options.learns_from.student_layers, options.model
    if not (options.do_train and layers):
        return initial_model(options)
    if model.model_dir or model.init_checkpoint or model.bert_config_file:
        raise InputError(
            "student_layers: the model begins with layers of the teacher; leave out --model_dir, "
            "--init_checkpoint and --bert_config_file"
        )
    found = _found(options)
    try:
        check_layers(layers, found.config.num_hidden_layers)
    except ValueError as error:
        raise InputError(f"student_{error}") from error
    return dataclasses.replace(
        found,
        config=dataclasses.replace(found.config, num_hidden_layers=len(layers)),
        description=f"layers {', '.join(map(str, layers))} of {found.description}",
    )


def find_teacher(
    options: FineTuningOptions,
    start: InitialModel,
    kind: str,
    labels: Sequence[str] | None,
    window_pooling: str | None,
) -> Teacher | None:
    """Find the teacher that the options name, and compare it with the task; None without one.

    Args:
        options: of the command.
        start: the student's beginning, with its vocabulary.
        kind: of the task.
        labels: of the task; None where it has none.
        window_pooling: of the student, whose texts are in windows; None: they are not.

    Raises:
        InputError: one line says what does not fit.
    """
    chosen = options.learns_from
    if chosen.teacher_dir is None:
        return None
    try:
        check_settings(kind, chosen.distill_temperature, chosen.distill_alpha)
    except ValueError as error:
        raise InputError(str(error)) from error
    found = _found(options)
    _check_vocabulary(found, start, chosen.teacher_dir)
    path = found.weights_path
    trained = read_trained_task(path.parent) if path is not None else None
    if trained is not None and trained.kind != kind:
        raise InputError(f"teacher_dir: was trained for {trained.kind}, not for {kind}")
    set_precision(options.training.precision)
    _check_outputs(found, kind, labels, window_pooling)
    if trained is not None and trained.temperature != 1:
        print(
            f"{chosen.teacher_dir}: its logits are taken as they are, not divided by the "
            f"temperature {trained.temperature:.4g} that it was calibrated with"
        )
    return Teacher(found, chosen, kind)


def _found(options: FineTuningOptions) -> InitialModel:
    """Find the teacher as a model that answers this command's questions."""
    place = options.learns_from.teacher_dir
    training = dataclasses.replace(options.training, recompute_layers="none")
    as_start = dataclasses.replace(options, model=ModelOptions(model_dir=place), training=training)
    try:
        return initial_model(as_start)
    except (InputError, ValueError, OSError) as error:
        raise InputError(f"teacher_dir: {error}") from error


def _check_vocabulary(found: InitialModel, start: InitialModel, place: str) -> None:
    """Refuse a teacher that would read other pieces than the student."""
    theirs, ours = load_vocab(found.vocab_file), load_vocab(start.vocab_file)
    if theirs != ours:
        different = sum(theirs.get(piece) != number for piece, number in ours.items())
        raise InputError(
            f"teacher_dir: {place} has another vocabulary than the student: {len(theirs):,} "
            f"pieces, and the student {len(ours):,}, {different:,} of which it has not or under "
            "another number; the two must read the same pieces"
        )
    if (found.do_lower_case, found.strip_accents) != (start.do_lower_case, start.strip_accents):
        raise InputError(
            f"teacher_dir: {place} has do_lower_case {found.do_lower_case} and strip_accents "
            f"{found.strip_accents}, the student {start.do_lower_case} and {start.strip_accents}; "
            "the two must read the same pieces"
        )


def _check_outputs(
    found: InitialModel, kind: str, labels: Sequence[str] | None, window_pooling: str | None
) -> None:
    """Refuse a teacher that answers another question than the task's."""
    try:
        loaded = load_model(found.checkpoint, kind=get_kind(kind).head)
    except (ValueError, OSError) as error:
        raise InputError(f"teacher_dir: {error}") from error
    if labels is not None and loaded.labels is not None and loaded.labels != tuple(labels):
        raise InputError(
            f"teacher_dir: its labels are {', '.join(loaded.labels)}, the task's "
            f"{', '.join(labels)}; they must be the same, in the same order"
        )
    outputs, expected = loaded.model.output_shape[-1], len(labels) if labels is not None else 1
    if outputs != expected:
        raise InputError(f"teacher_dir: it has {outputs} outputs, the task needs {expected}")
    if (config_of(loaded.model).window_pooling is None) != (window_pooling is None):
        raise InputError(
            "teacher_dir: teacher and student must both read texts in windows, or neither "
            "(--doc_stride)"
        )
