"""Options of the fine-tuning commands; names and defaults are those of the original."""

import dataclasses
import math
from typing import TypeVar

from bert_tf.config import WINDOW_POOLINGS
from bert_tf.options import option, to_dict
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.trained_task import POOLINGS
from data_prep.finetuning import options, tables
from experiments.command_line.distillation_options import DistillationOptions
from experiments.command_line.exit_status import InputError
from experiments.command_line.model_options import ModelOptions
from experiments.command_line.training_options import TrainingOptions

Options = TypeVar("Options", bound="FineTuningOptions")
CrossOptions = TypeVar("CrossOptions", bound="CrossValidatedOptions")

# Options that a run's result depends on, beside its records, its model and `TRAJECTORY_NAMES`.
RESULT_NAMES = (
    "train_batch_size learning_rate num_train_epochs num_train_steps warmup_proportion "
    "eval_every_steps early_stop_evals keep_best bias_correction clip_norm weight_decay_rate "
    "group_by_length pad_to_max_seq_length bilstm lora_rank lora_alpha lora_targets"
).split()

OBJECTIVES = ("scores", "pairs", "dropout")


@dataclasses.dataclass(frozen=True)
class FineTuningOptions:
    """What every fine-tuning command has."""

    model: ModelOptions = ModelOptions()
    output_dir: str = option(
        None, "Folder of the model and the results.", required=True, path="folder", group="output"
    )
    do_train: bool = option(False, "Whether to train.", group="training")
    do_eval: bool = option(False, "Whether to evaluate on the dev set; with --do_train each epoch.")
    do_predict: bool = option(False, "Whether to predict the test set.")
    # --- data
    max_seq_length: int = option(
        128, "Tokens of a sequence; longer ones are cut.", minimum=1, group="data"
    )
    train_batch_size: int = option(32, "Examples in a training batch.", minimum=1, group="training")
    eval_batch_size: int = option(8, "Examples in an evaluation batch.", minimum=1)
    predict_batch_size: int = option(8, "Examples in a batch of the test set.", minimum=1)
    group_by_length: bool = option(
        True, "Put examples of like length into one batch.", group="data"
    )
    pad_to_max_seq_length: bool = option(False, "Pad all to --max_seq_length, as the original.")
    cache_dir: str | None = option(
        None, "Folder of records; output_dir/records by default.", path="local"
    )
    records: options.RecordOptions = options.RecordOptions()
    # --- training
    learning_rate: float = option(
        5e-5, "Peak learning rate.", above=0, below=math.inf, group="training"
    )
    num_train_epochs: float = option(
        3.0, "Passes over the training set.", minimum=0, below=math.inf
    )
    num_train_steps: int | None = option(None, "Training steps, in place of --num_train_epochs.")
    warmup_proportion: float = option(
        0.1, "Part of the steps in which the learning rate rises.", minimum=0, maximum=1
    )
    save_checkpoints_steps: int = option(1000, "Steps between two checkpoints to continue from.")
    iterations_per_loop: int = option(1000, "Steps at most in one call of the graph.", minimum=1)
    seeds: tuple[int, ...] = option(
        (12345,),
        "Seeds of initial head, dropout and order; a run each.",
        minimum=0,
        alias="seed",
    )
    learning_rates: tuple[float, ...] = option(
        (),
        "Rates to try in place of --learning_rate: a run each, by --train_batch_sizes and --seeds; "
        "the best on the dev set is kept.",
        above=0,
        below=math.inf,
    )
    train_batch_sizes: tuple[int, ...] = option(
        (),
        "Sizes to try in place of --train_batch_size, likewise.",
        minimum=1,
        alias="batch_sizes",
    )
    eval_every_steps: int = option(
        0, "Steps between two evaluations; 0 for once an epoch.", minimum=0
    )
    early_stop_evals: int = option(
        0, "Stop after so many evaluations without a better one; 0: never.", minimum=0
    )
    keep_best: bool = option(True, "Keep the weights that were best on the dev set, not the last.")
    bias_correction: bool = option(False, "Adam's correction of its moments, which BERT left out.")
    clip_norm: float = option(1.0, "Largest norm of the gradients; 0 not to clip.")
    weight_decay_rate: float = option(0.01, "Weight decay.")
    bilstm: bool = option(False, "Put a BiLSTM between encoder and head: an ablation of the paper.")
    lora_rank: int = option(0, "Train adapters of this rank and the head alone; 0: all.", minimum=0)
    lora_alpha: float | None = option(
        None, "Adapters are scaled by this over the rank; the rank by default."
    )
    lora_targets: tuple[str, ...] = option(
        ("query", "value"),
        "What has adapters: query, key, value, attention_output, intermediate, output.",
    )
    log_steps: int = option(25, "Steps between two log lines.", minimum=1, group="output")
    tensorboard: bool = option(False, "Whether to write TensorBoard summaries.")
    report: bool = option(
        False, "Write report.html, a page of curves, figures and the worst errors with their texts."
    )
    overwrite: bool = option(False, "Train anew in a folder that holds a finished or another run.")
    training: TrainingOptions = TrainingOptions()

    def check_together(self) -> None:
        """Refuse options that no run could have together.

        Raises:
            InputError: one line says what.
        """
        if not (self.do_train or self.do_eval or self.do_predict):
            raise InputError("give at least one of --do_train, --do_eval, --do_predict")
        if self.early_stop_evals and self.do_train and not self.do_eval:
            raise InputError("early_stop_evals: needs --do_eval, whose evaluations it counts")
        if self.report and not self.do_eval:
            raise InputError("report: needs --do_eval, of whose figures and errors it is")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            seeds = ",".join(map(str, self.seeds))
            raise InputError(f"seeds: expected different whole numbers, got {seeds}")
        for name in ("learning_rates", "train_batch_sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                shown = ",".join(map(str, values))
                raise InputError(f"{name}: expected different numbers, got {shown}")
            if len(values) > 1 and self.do_train and not self.do_eval:
                raise InputError(f"{name}: needs --do_eval, whose dev set tells which is best")

    @property
    def is_grid(self) -> bool:
        """Whether learning rates or batch sizes are tried, if only one: each has a folder."""
        return bool(self.learning_rates or self.train_batch_sizes)

    @property
    def learns_from(self) -> DistillationOptions:
        """The teacher, of commands that have one."""
        return DistillationOptions()

    def combinations(self: Options) -> list[Options]:
        """Return these options with each learning rate and each batch size that is to be tried."""
        return [
            dataclasses.replace(self, learning_rate=rate, train_batch_size=size)
            for rate in self.learning_rates or (self.learning_rate,)
            for size in self.train_batch_sizes or (self.train_batch_size,)
        ]


@dataclasses.dataclass(frozen=True)
class FoldOptions:
    """Parts of the training set that are held out in turn."""

    folds: int = option(
        0,
        "Cross-validation: hold out each of so many parts of the training set once, in place of a "
        "dev set, then train on all of it. 0: no parts.",
        minimum=0,
        group="training",
    )


@dataclasses.dataclass(frozen=True)
class CrossValidatedOptions(FineTuningOptions):
    """What every fine-tuning command has whose examples can be parted."""

    cross_validation: FoldOptions = FoldOptions()

    @property
    def num_folds(self) -> int:
        """How many parts of the training set are held out in turn; 0 for none."""
        return self.cross_validation.folds

    def without_folds(self: CrossOptions, rate: float | None, size: int | None) -> CrossOptions:
        """Return the options of the model that is trained on all examples after the folds.

        Args:
            rate: its learning rate, where several were tried.
            size: its batch size, likewise.
        """
        return dataclasses.replace(
            self,
            cross_validation=FoldOptions(),
            do_eval=False,
            seeds=self.seeds[:1],
            learning_rates=(rate,) if self.learning_rates and rate is not None else (),
            train_batch_sizes=(size,) if self.train_batch_sizes and size is not None else (),
        )

    def check_together(self) -> None:
        """Refuse options that no run could have together; raises what the others' does."""
        super().check_together()
        if not self.num_folds:
            return
        if self.num_folds == 1:
            raise InputError("folds: expected at least 2, or 0 for none; got 1")
        if not (self.do_train and self.do_eval):
            raise InputError("folds: needs --do_train and --do_eval, of the parts held out")
        if self.training.distribution_strategy == "multi_worker_mirrored":
            raise InputError("folds: are trained on one host, not with multi_worker_mirrored")
        values = to_dict(self)
        for name in ("dev_file", "early_stop_evals", "report", "calibrate"):
            if values.get(name):
                raise InputError(
                    f"{name}: is of a dev set, which parts of the training set take the place of "
                    "with --folds; do without, or evaluate the model afterwards"
                )
        if values.get("thresholds", "kept") != "kept":
            raise InputError("thresholds: are chosen on a dev set, and --folds leave none")
        if values.get("teacher_dir"):
            raise InputError("teacher_dir: a teacher may have learnt from what --folds hold out")


@dataclasses.dataclass(frozen=True)
class LabelLossOptions:
    """How the labels count in the training loss."""

    class_weights: tuple[str, ...] = option(
        (),
        "Weights of the labels in the training loss: balanced, so that rare labels weigh more, or "
        "a number for each label, in the order of labels.txt.",
        group="training",
    )
    label_smoothing: float = option(
        0.0,
        "Part of a label's probability in the training loss that is spread over all labels.",
        minimum=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class ClassifierOptions(CrossValidatedOptions):
    """Options of run_classifier.py."""

    data: options.DataOptions = options.DataOptions()
    windows: options.WindowOptions = options.WindowOptions()
    window_pooling: str | None = option(
        None,
        "How the vectors of a text's windows become one, with --doc_stride. Default: mean.",
        choices=WINDOW_POOLINGS,
        group="training",
    )
    label_loss: LabelLossOptions = LabelLossOptions()
    calibrate: bool = option(
        False,
        "Fit a temperature on the dev set, which makes probabilities as often right as they say.",
    )
    thresholds: str = option(
        "kept",
        "Probability from which a label of several holds: chosen on the dev set by F1, one for all "
        "or one for each; kept is the model's, one half at first.",
        choices=("kept", "one", "each"),
    )
    majority_class: bool | None = option(
        None,
        "Predict the commonest label of the training set; by default for WNLI alone, as the paper.",
    )
    distillation: DistillationOptions = DistillationOptions()

    @property
    def learns_from(self) -> DistillationOptions:
        """The teacher."""
        return self.distillation

    def check_together(self) -> None:
        """Refuse options that no run could have together."""
        super().check_together()
        for name, is_asked in (
            ("calibrate", self.calibrate),
            ("thresholds", self.thresholds != "kept"),
        ):
            if is_asked and not self.do_eval:
                raise InputError(f"{name}: needs --do_eval, on whose dev set it is chosen")
        if self.do_train and self.window_pooling and self.windows.doc_stride is None:
            raise InputError("window_pooling: needs --doc_stride, which cuts texts into windows")

    @property
    def chooses_decision(self) -> bool:
        """Whether temperature or thresholds are chosen on the dev set."""
        return self.calibrate or self.thresholds != "kept"


@dataclasses.dataclass(frozen=True)
class MultipleChoiceOptions(CrossValidatedOptions):
    """Options of run_swag.py."""

    files: options.FileOptions = options.FileOptions()


@dataclasses.dataclass(frozen=True)
class TaggingOptions(CrossValidatedOptions):
    """Options of run_ner.py."""

    files: options.FileOptions = options.FileOptions()
    tagged: options.TaggedOptions = options.TaggedOptions()
    label_loss: LabelLossOptions = LabelLossOptions()


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions(FineTuningOptions):
    """Options of run_embeddings.py."""

    task_name: str | None = option(
        None,
        "Official data in --data_dir, for the splits of which no file is named.",
        choices=("STS-B",),
        group="data",
    )
    files: options.FileOptions = options.FileOptions()
    columns: tables.Columns = tables.Columns()
    negative_columns: tuple[str, ...] = option(
        (), "Columns of hard negatives of the training file, for pairs.", group="data"
    )
    max_score: float | None = option(
        None,
        "Score of texts that mean the same in your own tables; 1 by default.",
        above=0,
        below=math.inf,
    )
    objective: str | None = option(
        None,
        "Learn from scores of two texts, from pairs that belong together, or from texts alone, by "
        "dropout. Default: what the training data have.",
        choices=OBJECTIVES,
        group="training",
    )
    scale: float = option(
        20.0, "Times the cosines of pairs: one over the temperature.", above=0, below=math.inf
    )
    pooling: str | None = option(
        None,
        "How a text's vector is made. Default: the model's, or mean.",
        choices=POOLINGS,
        group="model",
    )
    normalize: bool | None = option(
        None, "Whether vectors get length 1. Default: as the model's, or yes."
    )
    sentence_transformers: bool = option(
        True,
        "Write the model for sentence-transformers too, in a folder of that name.",
        group="output",
    )

    def check_together(self) -> None:
        """Refuse options that no run could have together; raises what the others' does."""
        super().check_together()
        if self.bilstm:
            raise InputError("bilstm: is no part of a sentence encoder")
        if self.task_name and not self.files.data_dir:
            raise InputError("data_dir: needed with --task_name")
        if self.files.data_dir and not self.task_name:
            raise InputError("task_name: needed with --data_dir, or name --train_file, --dev_file")
        if self.negative_columns and self.objective not in (None, "pairs"):
            raise InputError(f"negative_columns: are for pairs, got --objective={self.objective}")


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringOptions(CrossValidatedOptions):
    """Options of run_squad.py."""

    train_file: str | None = option(None, "SQuAD's JSON to train on.", path="any", group="data")
    predict_file: str | None = option(None, "SQuAD's JSON to answer and evaluate.", path="any")
    spans: options.SpanOptions = options.SpanOptions()
    n_best_size: int = option(
        20, "Starts, ends and answers that are kept.", minimum=1, group="output"
    )
    max_answer_length: int = option(30, "Longest answer, in tokens.", minimum=1)
    version_2_with_negative: bool = option(
        False, "SQuAD 2.0: questions may have no answer.", group="data"
    )
    null_score_diff_threshold: float = option(
        0.0,
        "No answer is given where the score of none exceeds the best answer's by more than this.",
        minimum=-math.inf,  # which NaN is not
        group="output",
    )
    verbose_logging: bool = option(
        False,
        "Show each training question that is left out because its answer is not at its place.",
        group="data",
    )

    @property
    def window_rule(self) -> WindowRule:
        """How documents are cut into windows.

        Raises:
            ValueError: there is no room for a document.
        """
        return WindowRule(self.max_seq_length, self.spans.doc_stride, self.spans.max_query_length)


def defaults_of(name: str) -> dict[str, object]:
    """Return the defaults that a task has of its own: the paper's.

    Args:
        name: key of TASKS.
    """
    task = TASKS[name]
    return {
        "max_seq_length": task.max_seq_length,
        "train_batch_size": task.train_batch_size,
        "learning_rate": task.learning_rates[0],
        "num_train_epochs": task.num_train_epochs,
    }
