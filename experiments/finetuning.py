"""What the fine-tuning scripts share: flags, the weights they begin with, runs over seeds, results.

An output folder is a model directory (bert_config.json, vocab.txt, labels.txt, bert_model.ckpt.*)
and holds metrics.jsonl, config.json, curves.png, eval_results.txt and .json. With several
seeds each has a folder of its own within it, and the best run's model lies in the output folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags, logging

from bert_tf.tasks import TRAINED_TASK_NAME, TrainedTask, read_trained_task
from experiments import preemption, training_flags
from experiments.exits import InputError

RESULTS_NAME = "eval_results"
_RUN_NAME = "run.json"  # of a finished seed
_BEST_NAME = "best"
_ADAPTER_NAME = "adapter"
# Flags that a run's result depends on, beside its records and its model.
_OF_THE_RUN = [
    *(
        "train_batch_size learning_rate num_train_epochs num_train_steps warmup_proportion "
        "eval_every_steps early_stop_evals keep_best bias_correction clip_norm weight_decay_rate "
        "group_by_length pad_to_max_seq_length bilstm lora_rank lora_alpha lora_targets"
    ).split(),
    *training_flags.TRAJECTORY_NAMES,
]


# --- flags ----------------------------------------------------------------------------------------


def define_flags(
    values: flags.FlagValues,
    *,
    max_seq_length: int | None = 128,
    train_batch_size: int | None = 32,
    learning_rate: float | None = 5e-5,
    num_train_epochs: float | None = 3.0,
) -> None:
    """Define the flags that every fine-tuning script has; the original's names and defaults.

    Args:
        values: where to define them.
        max_seq_length: default; None for the task's own.
        train_batch_size: likewise.
        learning_rate: likewise.
        num_train_epochs: likewise.
    """
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    switch = functools.partial(flags.DEFINE_bool, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)

    text("model_dir", None, "Model to begin with: a directory or checkpoint of any known format.")
    text("bert_config_file", None, "Configuration of the model, in place of --model_dir's.")
    text("vocab_file", None, "Its vocabulary, likewise.")
    text("init_checkpoint", None, "Its weights, likewise.")
    switch("do_lower_case", None, "Casing; by default the model's, or True without --model_dir.")
    text("output_dir", None, "Folder of the model and the results.", required=True)
    switch("do_train", False, "Whether to train.")
    switch("do_eval", False, "Whether to evaluate on the dev set; with --do_train each epoch.")
    switch("do_predict", False, "Whether to predict the test set.")
    integer("max_seq_length", max_seq_length, "Tokens of a sequence; longer ones are cut.")
    integer("train_batch_size", train_batch_size, "Examples in a training batch.")
    integer("eval_batch_size", 8, "Examples in an evaluation batch.")
    integer("predict_batch_size", 8, "Examples in a batch of the test set.")
    number("learning_rate", learning_rate, "Peak learning rate.")
    number("num_train_epochs", num_train_epochs, "Passes over the training set.")
    integer("num_train_steps", None, "Training steps, in place of --num_train_epochs.")
    number("warmup_proportion", 0.1, "Part of the steps in which the learning rate rises.")
    integer("save_checkpoints_steps", 1000, "Steps between two checkpoints to continue from.")
    integer("iterations_per_loop", 1000, "Steps at most in one call of the graph.")

    flags.DEFINE_list(
        "seeds",
        ["12345"],
        "Seeds of initial head, dropout and order; a run each.",
        flag_values=values,
    )
    integer("eval_every_steps", 0, "Steps between two evaluations; 0 for once an epoch.")
    integer("early_stop_evals", 0, "Stop after so many evaluations without a better one; 0: never.")
    switch("keep_best", True, "Keep the weights that were best on the dev set, not the last.")
    switch("bias_correction", False, "Adam's correction of its moments, which BERT left out.")
    number("clip_norm", 1.0, "Largest norm of the gradients; 0 not to clip.")
    number("weight_decay_rate", 0.01, "Weight decay.")
    switch("bilstm", False, "Put a BiLSTM between encoder and head: an ablation of the paper.")
    integer("lora_rank", 0, "Train low-rank adapters of this rank and the head alone; 0: all.")
    number("lora_alpha", None, "Adapters are scaled by this over the rank; the rank by default.")
    flags.DEFINE_list(
        "lora_targets",
        ["query", "value"],
        "What has adapters: query, key, value, attention_output, intermediate, output.",
        flag_values=values,
    )
    switch("group_by_length", True, "Put examples of like length into one batch.")
    switch("pad_to_max_seq_length", False, "Pad all to --max_seq_length, as the original does.")
    integer("log_steps", 25, "Steps between two log lines.")
    switch("tensorboard", False, "Whether to write TensorBoard summaries.")
    switch("overwrite", False, "Train anew in a folder that holds a finished or another run.")
    text("cache_dir", None, "Folder of prepared records; output_dir/records by default.")
    training_flags.define_training_flags(values)


def check_flags(values: flags.FlagValues) -> None:
    """Refuse what no run could have.

    Raises:
        InputError: one line says what.
    """
    training_flags.check_training_flags(values)
    if not (values.do_train or values.do_eval or values.do_predict):
        raise InputError("give at least one of --do_train, --do_eval, --do_predict")
    for name in ("train_batch_size", "eval_batch_size", "predict_batch_size", "max_seq_length"):
        if values[name].value is not None and values[name].value < 1:
            raise InputError(f"{name}: expected at least 1, got {values[name].value}")
    for name in ("iterations_per_loop", "log_steps"):
        if values[name].value < 1:
            raise InputError(f"{name}: expected at least 1, got {values[name].value}")
    if values.learning_rate is not None and not 0 < values.learning_rate < math.inf:
        raise InputError(f"learning_rate: expected a positive number, got {values.learning_rate}")
    if not 0 <= values.warmup_proportion <= 1:
        raise InputError(f"warmup_proportion: expected 0 to 1, got {values.warmup_proportion}")
    for name in ("eval_every_steps", "early_stop_evals", "lora_rank"):
        if values[name].value < 0:
            raise InputError(f"{name}: expected at least 0, got {values[name].value}")
    if values.early_stop_evals and values.do_train and not values.do_eval:
        raise InputError("early_stop_evals: needs --do_eval, whose evaluations it counts")
    if values.num_train_epochs is not None and not math.isfinite(values.num_train_epochs):
        raise InputError(f"num_train_epochs: expected a number, got {values.num_train_epochs}")
    if values.lora_rank:
        from bert_tf.lora import check_arguments

        try:
            check_arguments(values.lora_rank, values.lora_alpha, values.lora_targets)
        except ValueError as error:
            raise InputError(f"lora_{error}") from error
    seeds = values.seeds
    if (
        not seeds
        or not all(seed.strip().isdecimal() for seed in seeds)
        or len(set(map(int, seeds))) < len(seeds)
    ):
        raise InputError(f"seeds: expected different whole numbers, got {','.join(seeds)}")
    if values.distribution_strategy != "one_device" or values.all_reduce_alg or values.num_replicas:
        training_flags.strategy_of(values)  # made here, before anything else of TensorFlow runs


@contextlib.contextmanager
def chief_first(values: flags.FlagValues) -> Iterator[None]:
    """Let the other hosts wait until the chief has been through a block, and left its files."""
    if values.distribution_strategy != "multi_worker_mirrored":
        yield
        return
    from bert_tf.distribution import is_chief, value_of_chief

    strategy = training_flags.strategy_of(values)
    if not is_chief(strategy):
        value_of_chief(strategy, 0)
    yield
    if is_chief(strategy):
        value_of_chief(strategy, 0)


# --- the model to begin with ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The model that a run begins with.

    Attributes:
        config: its configuration.
        vocab_file: its vocabulary.
        do_lower_case: its casing.
        checkpoint: its weights, opened; None for random ones.
        description: one phrase.
    """

    config: Any
    vocab_file: str
    do_lower_case: bool
    checkpoint: Any
    description: str

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        from bert_tf.tokenization import FullTokenizer

        return FullTokenizer(self.vocab_file, self.do_lower_case)

    @functools.cached_property
    def weights_digest(self) -> str:
        """A short digest of the content of the weights' files, wherever they lie."""
        if self.checkpoint is None:
            return "random weights"
        located = self.checkpoint.located
        path = pathlib.Path(located.path)
        if located.format == "tf":
            files = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")]
        elif path.is_dir():
            files = [p for p in path.iterdir() if p.name.endswith(".h5")]
        elif path.suffix == ".json":  # names the parts, which lie beside it
            parts = (p for p in path.parent.iterdir() if p.suffix in (".safetensors", ".bin"))
            files = [path, *parts]
        else:
            files = [path]
        digest = hashlib.sha256()
        for file in sorted(files):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]

    def trained(self, folder: str | os.PathLike) -> StartingPoint:
        """Return the same with the weights that a run has left in its folder."""
        from bert_tf.checkpoint_formats import open_checkpoint

        return dataclasses.replace(self, checkpoint=open_checkpoint(folder))


def starting_point(values: flags.FlagValues) -> StartingPoint:
    """Find the model that the flags name: --model_dir, or the original's three flags.

    Raises:
        InputError: flags are missing or contradict each other.
        ValueError, OSError: files cannot be read or do not fit.
    """
    from bert_tf import checkpoint_formats, checkpoints, tokenization
    from bert_tf.config import BertConfig
    from bert_tf.layers import recomputed_layers

    place = values.model_dir or values.init_checkpoint
    if values.model_dir and values.init_checkpoint:
        raise InputError("give --model_dir or --init_checkpoint, not both")
    if not values.do_train and place is None:
        place = values.output_dir
    config = BertConfig.from_json_file(values.bert_config_file) if values.bert_config_file else None
    opened = checkpoint_formats.open_checkpoint(place, config=config) if place else None
    config = config or (opened.config if opened else None)
    if config is None:
        raise InputError("give --model_dir, or --bert_config_file, --vocab_file, --init_checkpoint")
    if not values.vocab_file and opened is None:
        raise InputError("vocab_file: needed without --model_dir")
    vocab_file, lower = values.vocab_file, values.do_lower_case
    if opened is not None:
        found = checkpoints.load_tokenizer(opened, lower)
        if vocab_file is None and found is None:
            raise InputError(f"vocab_file: no vocabulary lies with {opened.description}")
        if lower is None:
            # The original's default, where the original's flags are given.
            lower = found.do_lower_case if found and values.vocab_file is None else True
        vocab_file = vocab_file or _vocabulary_file(found, values.output_dir)
        if values.init_checkpoint:
            tokenization.validate_case_matches_checkpoint(lower, values.init_checkpoint)
    lower = True if lower is None else lower
    vocab = tokenization.load_vocab(vocab_file)
    tokenization.check_special_tokens(vocab, vocab_file)
    if max(vocab.values()) >= config.vocab_size:
        raise InputError(
            f"vocab_file: {vocab_file} has {max(vocab.values()) + 1} pieces, the model "
            f"{config.vocab_size}"
        )
    if values.max_seq_length and values.max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"max_seq_length: the model has {config.max_position_embeddings} positions, got "
            f"{values.max_seq_length}"
        )
    recomputed_layers(values.recompute_layers, config.num_hidden_layers)  # refuses what is wrong
    description = opened.description if opened else "random weights"
    if opened is None:
        logging.warning("no --init_checkpoint and no --model_dir: training from random weights")
    return StartingPoint(config, vocab_file, lower, opened, description)


def _vocabulary_file(tokenizer: Any, output_dir: str) -> str:
    """Return the file of a vocabulary; of one that lies in tokenizer.json alone, write one."""
    if tokenizer.vocab_file:
        return tokenizer.vocab_file
    from bert_tf.checkpoint_writers import write_vocabulary

    path = pathlib.Path(output_dir) / "vocab.txt"
    write_vocabulary(tokenizer, path)
    return str(path)


# --- runs -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        task: what the model is for.
        labels: names of the labels; None where there are none.
        records: training records, `finetuning_pipeline.TaskRecords`.
        num_examples: examples among them; the number of steps follows from it.
        fingerprint: digest of the records.
        evaluate: model -> dev figures by name, with the selection metric; None not to evaluate.
        selection_metric: the figure by which weights and runs are chosen; higher is better.
        baseline: what a constant answer has in it; a run that is not above it counts as failed.
    """

    task: TrainedTask
    labels: tuple[str, ...] | None
    records: Any
    num_examples: int
    fingerprint: str
    evaluate: Callable[[Any], dict[str, float]] | None
    selection_metric: str
    baseline: float | None = None

    @property
    def kind(self) -> str:
        """Kind of task, key of `finetuning.HEAD_OF_KIND`."""
        return self.task.kind

    @property
    def num_labels(self) -> int | None:
        """Number of labels for `finetuning.make_model`."""
        return len(self.labels) if self.labels is not None else None


@dataclasses.dataclass
class Run:
    """A finished run.

    Attributes:
        seed: its seed.
        folder: its folder, with the model.
        steps: steps trained.
        figures: dev figures of the weights that were kept.
        best_step: the step of these weights.
        seconds: wall time of training and evaluation.
        cpu_seconds: processor time of them.
        diverged: what went wrong, or None.
    """

    seed: int
    folder: str
    steps: int
    figures: dict[str, float]
    best_step: int
    seconds: float
    cpu_seconds: float
    diverged: str | None = None


def num_steps(job: Job, values: flags.FlagValues) -> int:
    """Return the number of training steps, as the original counts them.

    Raises:
        InputError: there would be none.
    """
    steps = values.num_train_steps
    if steps is None:
        steps = int(job.num_examples / values.train_batch_size * values.num_train_epochs)
    if steps < 1:
        raise InputError(
            f"{job.num_examples} examples in batches of {values.train_batch_size} make no step; "
            "lower --train_batch_size or raise --num_train_epochs"
        )
    return steps


def train_all(job: Job, start: StartingPoint, values: flags.FlagValues) -> list[Run]:
    """Train a run for each seed; the best one's model then lies in the output folder.

    A run that is finished is not trained again, and one that was stopped goes on. Of several hosts
    only the chief returns.

    Raises:
        InputError: the folder holds a run of other settings, or a model of other origin.
        ValueError: the replicas cannot share a batch evenly.
        SystemExit: this is not the chief, and its part is done.
    """
    from bert_tf.distribution import is_chief

    strategy = training_flags.strategy_of(values)
    training_flags.check_batch_sizes(values, strategy)
    if not is_chief(strategy):
        for seed in map(int, values.seeds):
            folder = pathlib.Path(values.output_dir)
            folder = folder if len(values.seeds) == 1 else folder / f"seed-{seed}"
            if not (folder / _RUN_NAME).exists() or values.overwrite:
                _Training(job, start, values, folder, seed).run()
        print("this worker has finished; results are written by the chief, worker 0")
        sys.exit(0)
    output, seeds = pathlib.Path(values.output_dir), [int(seed) for seed in values.seeds]
    _check_source(start, output)
    if len(seeds) > 1:
        _make_way(output, overwrite=values.overwrite)
    runs = []
    for seed in seeds:
        folder = output if len(seeds) == 1 else output / f"seed-{seed}"
        runs.append(_train_one(job, start, values, folder, seed))
    best = best_run(job, runs)
    if len(seeds) > 1:
        _copy_model(pathlib.Path(best.folder), output)
        shutil.rmtree(output / _ADAPTER_NAME, ignore_errors=True)
        if values.lora_rank:
            shutil.copytree(pathlib.Path(best.folder) / _ADAPTER_NAME, output / _ADAPTER_NAME)
    job.task.write(output)
    return runs


def _copy_model(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a model directory; without its index, which goes last, there is no checkpoint."""
    from bert_tf.checkpoint_formats import WEIGHTS_NAME

    index = f"{WEIGHTS_NAME}.index"
    (target / index).unlink(missing_ok=True)
    for path in source.iterdir():
        if path.name.startswith(("bert_", "vocab.txt", "labels.txt")) and path.name != index:
            shutil.copy2(path, target / path.name)
    shutil.copy2(source / index, target / f"{index}.tmp")
    os.replace(target / f"{index}.tmp", target / index)


def best_run(job: Job, runs: Sequence[Run]) -> Run:
    """Return the run with the highest selection metric.

    Raises:
        InputError: all diverged.
    """
    good = [run for run in runs if run.diverged is None]
    if not good:
        raise InputError("; ".join(f"seed {run.seed}: {_how_it_ended(run)}" for run in runs))
    return max(good, key=lambda run: run.figures.get(job.selection_metric, -math.inf))


def _how_it_ended(run: Run) -> str:
    kept = f"; its best weights before that, of step {run.best_step}, lie in {run.folder}"
    return f"{run.diverged}{kept if run.figures else ''}"


def _settings(
    job: Job, start: StartingPoint, values: flags.FlagValues, seed: int
) -> dict[str, Any]:
    """Return all that a run's result depends on."""
    settings = {name: values[name].value for name in _OF_THE_RUN}
    settings |= {
        "seed": seed,
        "kind": job.kind,
        "labels": list(job.labels) if job.labels is not None else None,
        "records": job.fingerprint,
        "bert_config": start.config.to_dict(),
        "begins_with": start.weights_digest,
    }
    return json.loads(json.dumps(settings))


def _train_one(
    job: Job, start: StartingPoint, values: flags.FlagValues, folder: pathlib.Path, seed: int
) -> Run:
    settings = _settings(job, start, values, seed)
    finished = folder / _RUN_NAME
    if finished.exists() and not values.overwrite:
        stored = json.loads(finished.read_text(encoding="utf-8"))
        _check_same(folder, stored["settings"], settings)
        print(f"seed {seed}: is finished in {folder}; --overwrite trains it anew")
        return Run(**{**stored["run"], "folder": str(folder)})  # it may have been moved
    _begin(folder, settings, overwrite=values.overwrite)
    run = _Training(job, start, values, folder, seed).run()
    write_json(finished, {"settings": settings, "run": dataclasses.asdict(run)})
    return run


def _check_no_model(folder: pathlib.Path) -> None:
    """Refuse a folder with a model that is not a run's of this script: it would be replaced."""
    for pattern in ("bert_model.ckpt*", "model.ckpt-*", "*.safetensors", "pytorch_model*.bin"):
        for path in folder.glob(pattern):
            raise InputError(
                f"output_dir: {path} is of another model, which would be replaced; use another "
                "folder or --overwrite"
            )


def _check_source(start: StartingPoint, output: pathlib.Path) -> None:
    """Refuse to begin with a checkpoint of training that making room for the run would remove."""
    if start.checkpoint is None or not output.is_dir():
        return
    path = pathlib.Path(start.checkpoint.located.path)
    if path.name.startswith("model.ckpt-") and path.parent.samefile(output):
        raise InputError(
            f"output_dir: holds {path}, which the run is to begin with and would replace; use "
            "another folder"
        )


def _make_way(output: pathlib.Path, *, overwrite: bool) -> None:
    """Look at what lies where the best model of several seeds shall lie."""
    from bert_tf.training_log import CONFIG_NAME, METRICS_NAME

    if overwrite:  # of a run of one seed, which would pass for that of the new model
        for name in (_RUN_NAME, CONFIG_NAME, METRICS_NAME, TRAINED_TASK_NAME):
            (output / name).unlink(missing_ok=True)
    elif (output / _RUN_NAME).exists() or not any(output.glob(f"seed-*/{_RUN_NAME}")):
        _check_no_model(output)


def _check_same(folder: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in now:
        if before.get(name) == now[name]:
            continue
        if name == "records":
            raise InputError(
                f"output_dir: {folder} holds a run of other records: data, vocabulary or "
                "--max_seq_length have changed, or it was with --do_eval and now is without, or "
                "the reverse; to evaluate its model leave out --do_train, to train use another "
                "folder or --overwrite"
            )
        raise InputError(
            f"output_dir: {folder} holds a run with {name} {_short(before.get(name))}, and now "
            f"it is {_short(now[name])}; use another folder or --overwrite"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _begin(folder: pathlib.Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Make a run's folder, or look at what a stopped one has left there."""
    from bert_tf.tensor_files import checkpoint_steps
    from bert_tf.training_log import CONFIG_NAME, METRICS_NAME, write_config

    config = folder / CONFIG_NAME
    stored = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    # With the same settings a stopped run ends as one that begins anew does.
    goes_on = not overwrite or (stored == settings and not (folder / _RUN_NAME).exists())
    if checkpoint_steps(folder) and config.exists() and goes_on:
        _check_same(folder, stored, settings)
    else:
        if not overwrite and stored != settings:
            _check_no_model(folder)
        for path in folder.glob("model.ckpt-*"):
            path.unlink()
        for name in (_BEST_NAME, _ADAPTER_NAME):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (METRICS_NAME, _RUN_NAME, TRAINED_TASK_NAME):
            (folder / name).unlink(missing_ok=True)
    write_config(folder, settings)


class _Training:
    """One run: the model, its training, and the weights that were best."""

    def __init__(
        self,
        job: Job,
        start: StartingPoint,
        values: flags.FlagValues,
        folder: pathlib.Path,
        seed: int,
    ):
        self.job, self.start, self.values, self.folder, self.seed = job, start, values, folder, seed
        self.steps = num_steps(job, values)
        steps_per_epoch = job.num_examples / values.train_batch_size
        self.eval_every = values.eval_every_steps or max(1, round(steps_per_epoch))
        self.best: dict[str, Any] = {}
        self.scores: list[float] = []  # of all evaluations, those before a resume included

    def run(self) -> Run:
        import keras
        import tensorflow as tf

        from bert_tf import checkpoint_writers, checkpoints, finetuning, lora, training
        from bert_tf.tensor_files import checkpoint_steps

        values, job, folder = self.values, self.job, self.folder
        began, cpu_began = time.time(), time.process_time()
        if values.deterministic:
            tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(self.seed)
        training.set_precision(values.precision)
        strategy = training_flags.strategy_of(values)
        drawn = ()  # weights of the encoder that the checkpoint lacks
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self.model = finetuning.make_model(
                job.kind,
                dataclasses.replace(self.start.config, bilstm=values.bilstm),
                job.num_labels,
                recompute=values.recompute_layers,
            )
            if self.start.checkpoint is not None:
                transfer = checkpoints.load_checkpoint(
                    self.model, self.start.checkpoint, heads=False
                )
                drawn = transfer.missing
            if values.lora_rank:
                self._add_lora(drawn)
            layers = self.start.config.num_hidden_layers
            frozen = training_flags.freeze_weights(values, self.model, layers)
            if frozen:
                print(f"frozen: {len(frozen)} weights")
            optimizer = self._optimizer()
        self.trainer = training.Trainer(
            self.model,
            optimizer,
            finetuning.FineTuningObjective(job.kind),
            folder,
            jit_compile=values.jit_compile,
            log_steps=values.log_steps,
            save_checkpoints_steps=values.save_checkpoints_steps or None,
            keep_checkpoints=1,
            steps_per_call=values.iterations_per_loop,
            tensorboard=values.tensorboard,
            strategy=strategy,
            **training_flags.trainer_arguments(values),
        )
        if self.trainer.restore() is not None:
            self._remember()
        diverged = None
        try:
            with preemption.listening():
                self._train()
        except training.NonFiniteLossError as error:
            diverged = str(error)
        best_step = self.best.get("step", self.trainer.step)
        if self.trainer.is_chief:
            with self.trainer.averaged_weights():
                if self.best and values.keep_best:
                    if values.lora_rank:
                        lora.load_adapters(folder / _BEST_NAME, self.model)
                    else:
                        checkpoints.load_checkpoint(self.model, folder / _BEST_NAME)
                trained = self.model
                if values.lora_rank:
                    lora.save_adapters(folder / _ADAPTER_NAME, trained)
                    trained = lora.merge_lora(trained)
                checkpoint_writers.save_model_directory(
                    folder,
                    trained,
                    labels=job.labels,
                    tokenizer=self.start.tokenizer,
                    step=best_step,
                )
            for step in checkpoint_steps(folder):
                for path in folder.glob(f"model.ckpt-{step}.*"):
                    path.unlink()
            (folder / "checkpoint").unlink(missing_ok=True)  # which names the newest of these
            shutil.rmtree(folder / _BEST_NAME, ignore_errors=True)
        return Run(
            seed=self.seed,
            folder=str(folder),
            steps=self.trainer.step,
            figures=self.best.get("figures", {}),
            best_step=best_step,
            seconds=time.time() - began,
            cpu_seconds=time.process_time() - cpu_began,
            diverged=diverged,
        )

    def _remember(self) -> None:
        """Take up the evaluations of a run that was stopped."""
        from bert_tf.training_log import METRICS_NAME, read_metrics_or_nothing

        lines = read_metrics_or_nothing(self.folder / METRICS_NAME, "eval")
        self.scores = [line[f"eval_{self.job.selection_metric}"] for line in lines]
        stored = self.folder / _BEST_NAME / "best.json"
        if self.values.keep_best and stored.exists():
            best = json.loads(stored.read_text(encoding="utf-8"))
            self.best = best if best["step"] <= self.trainer.step else {}
        elif not self.values.keep_best and lines:
            names = [name for name in lines[-1] if name.startswith("eval_")]
            figures = {name.removeprefix("eval_"): lines[-1][name] for name in names}
            self.best = {"step": lines[-1]["step"], "figures": figures}

    def _add_lora(self, drawn: Sequence[str]) -> None:
        from bert_tf import lora
        from bert_tf.weight_names import HEADS_PATTERN

        values = self.values
        also_train = [HEADS_PATTERN, *(f"^{re.escape(path)}$" for path in drawn)]
        lora.add_lora(
            self.model,
            values.lora_rank,
            values.lora_alpha,
            values.lora_targets,
            also_train=also_train,
        )
        learning = sum(math.prod(weight.shape) for weight in self.model.trainable_weights)
        every = sum(math.prod(weight.shape) for weight in self.model.weights)
        print(f"trainable parameters: {learning:,} of {every:,} ({learning / every:.2%})")

    def _train(self) -> None:
        """Take the steps that are left, and evaluate what was not evaluated yet."""
        values, job = self.values, self.job
        self.trainer.train(
            lambda step: job.records.training_dataset(
                batch_size=values.train_batch_size,
                seed=self.seed,
                start_step=step,
                group_by_length=values.group_by_length,
                pad_to_max=values.pad_to_max_seq_length,
                with_mask=job.kind == "span" and not values.pad_to_max_seq_length,
            ),
            # One that had stopped early, and not yet written its model, shall not go on.
            self.trainer.step if self._should_stop() else self.steps,
            sequences_per_batch=values.train_batch_size,
            eval_every_steps=self.eval_every if job.evaluate else None,
            evaluate=self._evaluate if job.evaluate else None,
            should_stop=self._should_stop,
            interrupted=preemption.is_asked,
        )
        if job.evaluate and not self._was_evaluated():
            with self.trainer.averaged_weights():
                figures = self._evaluate()
            line = {f"eval_{name}": value for name, value in figures.items()}
            self.trainer.log_line("eval", line)

    def _optimizer(self) -> Any:
        values = self.values
        # LAMB has the correction anyway.
        arguments = {"bias_correction": True} if values.bias_correction else {}
        return training_flags.make_optimizer(
            values,
            self.start.config.num_hidden_layers,
            self.steps,
            int(self.steps * values.warmup_proportion),
            weight_decay_rate=values.weight_decay_rate,
            clip_norm=values.clip_norm or None,
            **arguments,
        )

    def _was_evaluated(self) -> bool:
        from bert_tf.training_log import METRICS_NAME, read_metrics_or_nothing

        lines = read_metrics_or_nothing(self.folder / METRICS_NAME, "eval")
        return any(line["step"] == self.trainer.step for line in lines)

    def _evaluate(self) -> dict[str, float]:
        from bert_tf.checkpoint_writers import save_model_directory
        from bert_tf.lora import save_adapters

        assert self.job.evaluate is not None  # noqa: S101
        figures = self.job.evaluate(self.model)
        score = figures[self.job.selection_metric]
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if self.trainer.is_chief:
            print(f"step {self.trainer.step}: {shown}")
            sys.stdout.flush()
        self.scores.append(score)
        better = not self.best or score > self.best["figures"][self.job.selection_metric]
        if better or not self.values.keep_best:
            self.best = {"step": self.trainer.step, "figures": figures}
            if self.values.keep_best and self.trainer.is_chief:
                if self.values.lora_rank:
                    save_adapters(self.folder / _BEST_NAME, self.model)
                else:
                    step = self.trainer.step
                    save_model_directory(self.folder / _BEST_NAME, self.model, step=step)
                write_json(self.folder / _BEST_NAME / "best.json", self.best)
        return figures

    def _should_stop(self) -> bool:
        patience = self.values.early_stop_evals
        if not patience or not self.scores:
            return False
        return len(self.scores) - 1 - self.scores.index(max(self.scores)) >= patience


# --- results --------------------------------------------------------------------------------------


def write_json(path: pathlib.Path, values: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def with_step(figures: Mapping[str, Any], step: int | None) -> dict[str, Any]:
    """Add `global_step`, as the original does, to the figures of a model whose steps are known."""
    return dict(figures) if step is None else {**figures, "global_step": step}


def write_results(
    folder: pathlib.Path, results: Mapping[str, Any], name: str = RESULTS_NAME
) -> None:
    """Write eval_results.txt, "name = value" in each line as the original does, and .json."""
    lines = [f"{key} = {results[key]}\n" for key in sorted(results)]
    (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    write_json(folder / f"{name}.json", dict(results))


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def summary_over_seeds(job: Job, runs: Sequence[Run]) -> dict[str, Any]:
    """Return mean, median, standard deviation, least and greatest of each figure, and failed runs.

    A run has failed if its loss became infinite, or if it is not better than a constant answer.
    """
    failed = {run.seed: run.diverged for run in runs if run.diverged}
    for run in runs:
        score = run.figures.get(job.selection_metric)
        if run.diverged is None and job.baseline is not None and score is not None:
            if score <= job.baseline + 1e-9:
                failed[run.seed] = (
                    f"{job.selection_metric} {score:.4f} is not above that of a constant answer, "
                    f"{job.baseline:.4f}"
                )
    names = sorted({name for run in runs for name in run.figures})
    figures = {}
    for name in names:
        found = [run.figures[name] for run in runs if name in run.figures]
        figures[name] = {
            "mean": statistics.fmean(found),
            "median": statistics.median(found),
            "std": statistics.stdev(found) if len(found) > 1 else 0.0,
            "min": min(found),
            "max": max(found),
        }
    return {
        "figures": figures,
        "runs": [dataclasses.asdict(run) for run in runs],
        "failed": {str(seed): reason for seed, reason in failed.items()},
    }


def report_runs(job: Job, runs: Sequence[Run], folder: pathlib.Path) -> None:
    """Write seeds.json, what the seeds gave, and print it: a table, for more than one."""
    from bert_tf.training_log import METRICS_NAME
    from experiments.plot_curves import plot_curves

    summary = summary_over_seeds(job, runs)
    write_json(folder / "seeds.json", summary)
    if len(runs) > 1:
        print(f"over {len(runs)} seeds:")
        for name, row in summary["figures"].items():
            print(
                f"  {name:<24} mean {row['mean']:.4f}  median {row['median']:.4f}  "
                f"std {row['std']:.4f}  from {row['min']:.4f} to {row['max']:.4f}"
            )
    for seed, reason in summary["failed"].items():
        print(f"  failed: seed {seed}: {reason}")
    for run in runs:
        metrics = pathlib.Path(run.folder) / METRICS_NAME
        if not metrics.exists():
            continue
        try:
            plot_curves(metrics, pathlib.Path(run.folder) / "curves.png")
        except (ImportError, ValueError) as error:
            logging.warning("no curves: %s", error)


def load_trained(values: flags.FlagValues, start: StartingPoint, kind: str) -> Any:
    """Load the fine-tuned model that evaluation and prediction without training are for.

    Returns:
        `checkpoints.LoadedModel`.

    Raises:
        InputError: it is of another kind.
        ValueError, OSError: it cannot be read.
    """
    from bert_tf import checkpoints, training
    from bert_tf.finetuning import HEAD_OF_KIND

    training.set_precision(values.precision)
    head = HEAD_OF_KIND[kind]
    _check_kind(start, kind)
    try:
        return checkpoints.load_model(start.checkpoint, kind=head)
    except ValueError as error:
        own = pathlib.Path(values.output_dir)
        if values.init_checkpoint and not values.do_train and any(own.glob("bert_model.ckpt*")):
            # The original's commands give the pre-trained model and take what training left.
            print(f"{own}: its fine-tuned model is used, as {start.description} has no such head")
            return checkpoints.load_model(own, kind=head)
        raise InputError(
            f"{error} (there is no --do_train, so a fine-tuned model is needed)"
        ) from error


def _check_kind(start: StartingPoint, kind: str) -> None:
    """Refuse a model that was trained as another kind with the same head.

    Classification, regression and multi_label have one head: its weights do not tell them apart.
    """
    if start.checkpoint is None:
        return
    folder = pathlib.Path(start.checkpoint.located.path).parent
    trained = read_trained_task(folder)
    if trained is not None and trained.kind != kind:
        raise InputError(f"{folder}: the model was trained for {trained.kind}, not for {kind}")


def digest_of(*parts: Any) -> str:
    """Return a short digest of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def leave_out(message: str) -> None:
    """Take the message of a bad example that was told of when the records were made."""
