"""The teacher of pre-training: found, compared with the records and the student, and loaded."""

import dataclasses
from typing import Any

import keras
from absl import logging

from bert_tf.config import BertConfig
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.training.distillation import check_layers, copy_layers
from bert_tf.training.masked_lm_distillation import (
    PretrainingDistillation,
    check_matched,
    matched_student,
)
from bert_tf.training.objectives import PretrainingObjective
from bert_tf.weights.checkpoint import Checkpoint, open_checkpoint
from bert_tf.weights.load import load_checkpoint
from experiments.command_line.exit_status import InputError
from experiments.command_line.weights_digest import weights_digest
from experiments.pretraining.options import PretrainingTeacherOptions


@dataclasses.dataclass(frozen=True)
class PretrainingTeacher:
    """A teacher whose weights are found.

    Attributes:
        options: how much is learnt from it.
        checkpoint: its weights.
        config: its configuration.
    """

    options: PretrainingTeacherOptions
    checkpoint: Checkpoint
    config: BertConfig

    @classmethod
    def find(cls, options: PretrainingTeacherOptions) -> "PretrainingTeacher | None":
        """Find the teacher that the options name; None where they name none.

        Raises:
            InputError: there is none, or it does not have the layers that the student begins with.
        """
        if options.teacher_dir is None:
            return None
        try:
            checkpoint = open_checkpoint(options.teacher_dir)
        except (ValueError, OSError) as error:
            raise InputError(f"teacher_dir: {error}") from error
        if checkpoint.config is None:
            raise InputError(f"teacher_dir: no bert_config.json lies in {options.teacher_dir}")
        if options.student_layers:
            try:
                check_layers(options.student_layers, checkpoint.config.num_hidden_layers)
            except ValueError as error:
                raise InputError(f"student_{error}") from error
        return cls(options, checkpoint, checkpoint.config)

    @property
    def student_config(self) -> BertConfig | None:
        """The configuration of a student that begins with layers of it; None where none does."""
        layers = self.options.student_layers
        if not layers:
            return None
        return dataclasses.replace(self.config, num_hidden_layers=len(layers))

    @property
    def description(self) -> dict[str, Any]:
        """What the result of a run depends on."""
        values = dataclasses.asdict(self.options)
        del values["teacher_dir"]  # which may have been moved
        as_in_json = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        own = {"weights": weights_digest(self.checkpoint), "hidden_size": self.config.hidden_size}
        return {**own, **as_in_json}

    def check(self, student: BertConfig, vocab_file: str | None, max_seq_length: int) -> None:
        """Refuse a teacher that reads other pieces than the student, or not as many.

        Args:
            student: its configuration.
            vocab_file: of the records, where it is known.
            max_seq_length: the longest of all phases.

        Raises:
            InputError: one line says what does not fit.
        """
        config, place = self.config, self.options.teacher_dir
        own = self.checkpoint.located.vocab_file if self.checkpoint.located else None
        if not own:
            logging.warning(
                "teacher_dir: no vocab.txt lies in %s; that its pieces are those of the records "
                "was not checked",
                place,
            )
        elif vocab_file and load_vocab(own) != load_vocab(vocab_file):
            raise InputError(
                f"teacher_dir: {place} has another vocabulary than the records; the two must read "
                "the same pieces"
            )
        for name in ("vocab_size", "left_to_right"):
            theirs, ours = getattr(config, name), getattr(student, name)
            if theirs != ours:
                raise InputError(f"teacher_dir: its {name} is {theirs}, the student's {ours}")
        if config.type_vocab_size < student.type_vocab_size:
            raise InputError(
                f"teacher_dir: it tells {config.type_vocab_size} segments apart, the student "
                f"{student.type_vocab_size}"
            )
        if max_seq_length > config.max_position_embeddings:
            raise InputError(
                f"teacher_dir: it has {config.max_position_embeddings} positions, and sequences "
                f"have {max_seq_length}"
            )
        try:
            layers = self.options.distill_layers
            check_matched(layers, config.num_hidden_layers, student.num_hidden_layers)
        except ValueError as error:
            raise InputError(f"distill_{error}") from error

    def teach(
        self, student: keras.Model, task: PretrainingObjective, *, packed: bool
    ) -> tuple[keras.Model, PretrainingDistillation]:
        """Load the teacher, and give the student its layers where that is asked for.

        Of a run with a strategy this is called within its scope.

        Args:
            student: made with hidden_states where layers are matched.
            task: the objective without a teacher.
            packed: whether rows hold several sequences.

        Returns:
            The model to train, which has the student's variables, and its objective.

        Raises:
            InputError: the teacher's weights cannot be read, or have no head of a language model.
        """
        options, layers = self.options, self.options.distill_layers
        # Made first, so that what the student begins as does not depend on the teacher.
        trained = matched_student(student, self.config.hidden_size) if layers else student
        model = bert_pretrainer(
            self.config, packed=packed, hidden_states=bool(layers), name="teacher"
        )
        try:
            load_checkpoint(model, self.checkpoint)
        except (ValueError, OSError) as error:
            raise InputError(f"teacher_dir: {error}") from error
        model.trainable = False
        if options.student_layers:
            copy_layers(model, student, options.student_layers)
        return trained, PretrainingDistillation(
            task,
            model,
            options.distill_temperature,
            options.distill_alpha,
            layers,
            options.distill_hidden_weight,
        )
