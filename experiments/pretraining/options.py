"""Options of pre-training, and what they may be together."""

import dataclasses
import math

from bert_tf.options import check, option
from experiments.command_line.distillation_options import DistillationOptions
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TRAJECTORY_NAMES, TrainingOptions

# What may differ from the run that is continued only at the price of another trajectory.
TRAJECTORY = (
    *("train_batch_size", "learning_rate", "num_train_steps", "num_warmup_steps", "seed"),
    *("second_train_batch_size", "second_phase_steps"),
    *("train_batch_tokens", "second_train_batch_tokens"),
    *("second_learning_rate", "second_num_warmup_steps", "pack_sequences"),
    "next_sentence_weight",
    *TRAJECTORY_NAMES,
)


_BATCH_SIZE = 32  # the original's default


@dataclasses.dataclass(frozen=True)
class PhaseOptions:
    """What is asked for of one phase, which takes the steps from `begin` up to `end`.

    Attributes:
        prefix: of the names of its flags.
        input_file: its records.
        max_seq_length: tokens in a sequence.
        max_predictions_per_seq: predictions in a sequence.
        batch_size: sequences in a batch, or packed rows; 0 where it is of so many tokens.
        batch_tokens: tokens of a batch, padding included; None where it is of so many sequences.
        begin: steps before it.
        end: steps when it has ended.
    """

    prefix: str
    input_file: str
    max_seq_length: int
    max_predictions_per_seq: int
    batch_size: int
    batch_tokens: int | None
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class PretrainingTeacherOptions(DistillationOptions):
    """A teacher of masked language modelling, and how much is learnt from it.

    Raises:
        InputError: layers of no teacher.
    """

    teacher_dir: str | None = option(
        None,
        "Pre-trained model of the same vocabulary, from whose answers at masked positions the "
        "model learns too.",
        path="model",
        group="training",
    )
    student_layers: tuple[int, ...] = option(
        (),
        "Begin with these layers of the teacher, as 0,2,4, and its embeddings and heads, in place "
        "of --init_checkpoint.",
        minimum=0,
    )
    distill_layers: tuple[int, ...] = option(
        (),
        "For each layer of the model the teacher's, from 0, whose hidden states it is to have too, "
        "as 1,3,5.",
        minimum=0,
    )
    distill_hidden_weight: float = option(
        1.0, "What the distance of hidden states counts.", minimum=0, below=math.inf
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill_layers and not self.teacher_dir:
            raise InputError("distill_layers: needs --teacher_dir, whose layers they are")


@dataclasses.dataclass(frozen=True)
class PretrainingOptions:
    """What run_pretraining.py is asked for.

    Raises:
        InputError: options do not fit each other.
    """

    bert_config_file: str | None = option(
        None, "bert_config.json of the model.", path="any", group="model"
    )
    model_size: str | None = option(
        None, "Instead of bert_config_file: tiny, mini, small, medium, base, large."
    )
    input_file: str = option(
        None, "Training records: names and globs, comma separated.", path="any", group="data"
    )
    output_dir: str = option(
        None, "Folder of checkpoints, logs and results.", path="folder", group="output"
    )
    second_input_file: str | None = option(
        None, "Records of a second phase, of other length.", path="any", group="second phase"
    )
    second_max_seq_length: int = option(512, "Tokens of a sequence of it.", minimum=1)
    second_max_predictions_per_seq: int = option(77, "Predictions in a sequence of it.", minimum=1)
    second_train_batch_size: int | None = option(
        None, "Sequences in a batch of it, or rows; train_batch_size if not.", minimum=1
    )
    second_train_batch_tokens: int | None = option(
        None, "Instead: tokens of a batch of it; train_batch_tokens if neither.", minimum=1
    )
    second_phase_steps: int | None = option(
        None, "The last steps, which are its; by default a tenth.", minimum=1
    )
    second_learning_rate: float | None = option(
        None, "Its own peak; by default the first decay goes on.", above=0, below=math.inf
    )
    second_num_warmup_steps: int = option(0, "Steps of its own warm-up.")
    init_checkpoint: str | None = option(
        None,
        "Weights to begin with: TF1, transformers, KerasHub, ours, or a name.",
        path="model",
        group="model",
    )
    init_ignore: str = option(
        "", "Regular expressions of checkpoint tensors to leave, comma separated."
    )
    init_allow_missing: str = option(
        "", "Regular expressions of weights that it may lack, likewise."
    )
    max_seq_length: int = option(
        128, "Tokens of a sequence, as in the records.", minimum=1, group="data"
    )
    max_predictions_per_seq: int = option(
        20, "Predictions in a sequence; must be the records'.", minimum=1
    )
    do_train: bool = option(False, "Whether to train.", group="training")
    do_eval: bool = option(False, "Whether to evaluate.")
    train_batch_size: int = option(
        _BATCH_SIZE, "Sequences in a training batch; rows with pack_sequences.", minimum=1
    )
    eval_batch_size: int = option(8, "Sequences in an evaluation batch.", minimum=1)
    train_batch_tokens: int | None = option(
        None,
        "Instead of train_batch_size: tokens of a training batch, padding included. Each holds as "
        "many sequences of like length as fit, so short ones come in larger batches.",
        minimum=1,
    )
    length_bins: int | None = option(
        None,
        "Training batches hold sequences of like length, padded to a multiple of so many tokens; 0 "
        "for batches as they come, padded to max_seq_length. By default a sixteenth of that, an "
        "eighth where XLA compiles, 64 at most.",
        minimum=0,
    )
    pack_sequences: bool = option(
        False,
        "Put several sequences, which do not see each other, into each row of max_seq_length "
        "tokens: hardly any padding, and one shape for XLA and TPUs.",
    )
    learning_rate: float = option(5e-5, "Peak learning rate.", above=0, below=math.inf)
    next_sentence_weight: float = option(
        1.0,
        "What the loss of next sentence prediction counts beside the language model's; below 1 "
        "where batches are small.",
        minimum=0,
        below=math.inf,
    )
    num_train_steps: int = option(100000, "Training steps in all.", minimum=1)
    num_warmup_steps: int = option(10000, "Steps of linear warm-up.", minimum=0)
    save_checkpoints_steps: int = option(
        1000, "Steps between two checkpoints.", minimum=1, group="output"
    )
    iterations_per_loop: int = option(
        1000, "Steps at most in one call of the graph.", minimum=1, group="training"
    )
    max_eval_steps: int = option(
        100, "Evaluation batches at most; 0 for all records.", minimum=0, group="training"
    )
    eval_input_file: str | None = option(
        None, "Held-out records; input_file by default.", path="any", group="data"
    )
    eval_every_steps: int = option(
        0, "Also evaluate every so many training steps; 0 for never.", minimum=0, group="training"
    )
    vocab_file: str | None = option(
        None,
        "Vocabulary of the records: checked, and copied to output_dir.",
        path="any",
        group="data",
    )
    do_lower_case: bool | None = option(None, "Casing of the records, where no manifest says it.")
    strip_accents: bool | None = option(
        None, "Whether their accents are stripped, where no manifest says it."
    )
    do_whole_word_mask: bool = option(False, "Dynamic masking of records without a manifest.")
    masked_lm_prob: float = option(0.15, "Dynamic masking of records without a manifest.")
    skip_corrupt_records: bool = option(False, "Leave damaged records out, and name them.")
    seed: int = option(
        12345, "Of initial weights, dropout, order and dynamic masks.", minimum=0, group="training"
    )
    log_steps: int = option(25, "Steps between two log lines.", minimum=1, group="output")
    keep_checkpoints: int = option(5, "Newest checkpoints to keep, beside the best.", minimum=1)
    tensorboard: bool = option(True, "Whether to write TensorBoard summaries.")
    find_batch_size: bool = option(
        False, "Measure the largest batch that fits, and end.", group="training"
    )
    memory_limit_gib: float | None = option(
        None, "Of find_batch_size; by default what the machine has left.", above=0
    )
    measure_only: bool = option(False, "Take steps, write no model; for find_batch_size.")
    teacher: PretrainingTeacherOptions = PretrainingTeacherOptions()
    training: TrainingOptions = TrainingOptions()

    def __post_init__(self) -> None:
        check(self)
        for name in ("init_checkpoint", "bert_config_file", "model_size"):
            if self.teacher.student_layers and getattr(self, name):
                raise InputError(
                    "student_layers: the model begins with layers of the teacher; leave out "
                    f"--{name}"
                )
        first_steps = self.phases[0].end
        if first_steps < 1:
            raise InputError(
                f"second_phase_steps: expected less than num_train_steps, {self.num_train_steps}, "
                f"got {self.second_phase_steps}"
            )
        rate = self.second_learning_rate
        if rate is not None and not self.second_input_file:
            raise InputError(
                f"second_learning_rate: expected above 0, with --second_input_file, got {rate}"
            )
        shortest = min(phase.max_seq_length for phase in self.phases)
        if (self.length_bins or 0) > shortest:
            raise InputError(
                f"length_bins: expected at most max_seq_length, {shortest}, got {self.length_bins}"
            )
        if self.do_train:
            self.training.check_profile_of(self.num_train_steps)
        if self.pack_sequences and self.length_bins:
            raise InputError(
                "pack_sequences, length_bins: expected one of them, since packed rows have one "
                f"length; got length_bins {self.length_bins}"
            )
        self._check_tokens()
        several_hosts = self.training.distribution_strategy == "multi_worker_mirrored"
        if self.find_batch_size and several_hosts:
            raise InputError(
                "find_batch_size: measure on one host, with the strategy it would have"
            )
        if not self.do_train and not self.do_eval:
            raise InputError("do_train, do_eval: expected at least one of them, got neither")
        for name in ("input_file", "output_dir"):
            if not getattr(self, name):
                raise InputError(f"{name}: this flag is required")
        if self.bert_config_file and self.model_size:
            raise InputError("bert_config_file, model_size: expected one of them, got both")

    def _check_tokens(self) -> None:
        """Refuse what batches of so many tokens cannot be together with."""
        for prefix, size in (
            ("", None if self.train_batch_size == _BATCH_SIZE else self.train_batch_size),
            ("second_", self.second_train_batch_size),
        ):
            tokens = getattr(self, f"{prefix}train_batch_tokens")
            if tokens is not None and size is not None:
                raise InputError(
                    f"{prefix}train_batch_size, {prefix}train_batch_tokens: expected one of them, "
                    f"got {size} and {tokens}"
                )
        if self.second_train_batch_tokens and not self.second_input_file:
            raise InputError(
                "second_train_batch_tokens: is of the second phase; give --second_input_file"
            )
        for phase in self.phases:
            if phase.batch_tokens is None:
                continue
            name = f"{phase.prefix}train_batch_tokens"
            if not phase.prefix or self.second_train_batch_tokens is None:
                name = "train_batch_tokens"
            if self.pack_sequences or self.length_bins == 0:
                other = "pack_sequences" if self.pack_sequences else "length_bins 0"
                raise InputError(
                    f"{name}: expected batches of like length, without {other}: those of rows of "
                    f"one length hold equally many; got {phase.batch_tokens}"
                )
            if self.training.distribution_strategy == "tpu":
                raise InputError(
                    f"{name}: its batches have many shapes, and a TPU is for one; use "
                    "--train_batch_size, or --pack_sequences"
                )

    @property
    def phases(self) -> tuple[PhaseOptions, ...]:
        """The phases of training: one, or two where there is a second input file."""
        steps = self.num_train_steps
        boundary = steps
        if self.second_input_file:
            last = self.second_phase_steps
            boundary -= max(1, round(steps / 10)) if last is None else last
        first = PhaseOptions(
            "",
            self.input_file,
            self.max_seq_length,
            self.max_predictions_per_seq,
            0 if self.train_batch_tokens else self.train_batch_size,
            self.train_batch_tokens,
            0,
            boundary,
        )
        if not self.second_input_file:
            return (first,)
        tokens, size = self.second_train_batch_tokens, self.second_train_batch_size
        if tokens is None and size is None:  # those of the first
            tokens, size = first.batch_tokens, first.batch_size
        second = PhaseOptions(
            "second_",
            self.second_input_file,
            self.second_max_seq_length,
            self.second_max_predictions_per_seq,
            0 if tokens else size or 0,
            tokens,
            boundary,
            steps,
        )
        return first, second
