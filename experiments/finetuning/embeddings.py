"""Fine-tuning of sentence encoders: vectors of texts, for search and comparison."""

import csv
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from bert_tf.files import write_whole
from bert_tf.serving.sentence_transformers import save_sentence_transformers
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.retrieval_metrics import retrieval_scores
from bert_tf.tasks.sentence_transformers import MODULES_NAME, read_sentence_transformers
from bert_tf.tasks.table import Task
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.training.finetuning import make_model
from bert_tf.training.trainer import set_precision
from bert_tf.weights.load import LoadedModel, load_checkpoint
from bert_tf.weights.tensor_files import SAFETENSORS_NAME
from data_prep.finetuning import tables, text_groups
from data_prep.finetuning.glue import OnBad
from data_prep.finetuning.kinds import reader_of
from data_prep.finetuning.sources import Source
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import write_results
from experiments.command_line.tables import print_table
from experiments.command_line.training_setup import strategy_of
from experiments.finetuning import splits
from experiments.finetuning.flow import Plan, fine_tune
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import EmbeddingOptions
from experiments.finetuning.results import with_step
from experiments.finetuning.seed_training import Job

FOLDER_NAME = "sentence_transformers"  # in the output folder


def run(options: EmbeddingOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, _Embeddings)


class _Embeddings(Plan):
    def __init__(self, options: EmbeddingOptions, start: InitialModel):
        self.options, self.start = options, start
        if options.max_score and not any(options.files.by_split().values()):
            raise InputError("max_score: is of tables of your own, and no file is named")
        self.vectors = vector_settings(options, used_model(options, start)[0])
        parts = {"train": options.do_train, "dev": options.do_eval, "test": options.do_predict}
        # All of them found before any is read.
        sources = {part: find_source(options, part) for part, asked in parts.items() if asked}
        if options.do_train:
            _check_training(options, start)
        self.data = {
            part: splits.make_records(
                _task_of(options, part, kind), [source], options, start, parts=[part]
            )
            for part, (kind, source) in sources.items()
        }
        self.task = next(iter(self.data.values())).task
        self.evaluator = None
        if options.do_eval:
            self.evaluator = VectorEvaluator(self.data["dev"], options)
        if options.do_train:
            self.job = self._make_job()

    def _make_job(self) -> Job:
        data, evaluator, kind = self.data["train"], self.evaluator, self.task.kind
        fingerprints = [data.fingerprint("train")]
        fingerprints += [evaluator.data.fingerprint("dev")] if evaluator else []
        return Job(
            TrainedTask(kind, self.options.max_seq_length, **self.vectors),
            labels=None,
            records=data.records("train"),
            num_examples=data.prepared["train"].num_examples,
            fingerprint="-".join(fingerprints),
            evaluate=evaluator,
            selection_metric=(evaluator or self).task.selection_metric,
            baseline=evaluator.baseline if evaluator else None,
            model_settings=self.vectors,
            loss_settings={"scale": self.options.scale} if kind == "retrieval" else {},
        )

    def load(self, options: EmbeddingOptions, start: InitialModel) -> LoadedModel:
        """Load the encoder alone: any BERT has vectors, whatever its heads."""
        start, is_own = used_model(options, start)
        assert start.checkpoint is not None  # noqa: S101 - as for `find_trained`
        if is_own:
            print(
                f"{options.output_dir}: its fine-tuned model is used, as {start.description} was "
                "not trained for vectors"
            )
        set_precision(options.training.precision)
        model = make_model(self.task.kind, start.config, **self.vectors)
        transfer = load_checkpoint(model, start.checkpoint, heads=False)
        return LoadedModel(model, start.config, start.tokenizer, "encoder", None, transfer)

    def finish(self, start: InitialModel) -> None:
        folder = pathlib.Path(self.options.output_dir) / FOLDER_NAME
        if not self.options.sentence_transformers:
            _remove_former(folder)
            return
        save_sentence_transformers(
            folder,
            self.load(self.options, start).model,
            start.tokenizer,
            max_seq_length=self.options.max_seq_length,
            **self.vectors,
        )
        print(f"wrote {folder}")

    def evaluate(self, loaded: LoadedModel) -> None:
        assert self.evaluator is not None  # noqa: S101
        self.evaluator.report(loaded)

    def predict(self, loaded: LoadedModel) -> None:
        data = self.data["test"]
        vectors = splits.test_logits(data, "test", loaded.model, self.options)
        path = pathlib.Path(self.options.output_dir) / "predictions.csv"
        with write_whole(path, "w") as stream:
            writer = csv.writer(stream)
            writer.writerow(["id", "cosine"])
            cosines = get_kind(data.task.kind).decide(vectors)
            for example, cosine in zip(data.examples("test"), cosines, strict=True):
                writer.writerow([example.guid.removeprefix("test-"), f"{cosine:.6g}"])
        print(f"wrote {path}")


def _remove_former(folder: pathlib.Path) -> None:
    """Remove the folder for sentence-transformers of a model that was here before this one."""
    weights = folder / SAFETENSORS_NAME
    if not (folder / MODULES_NAME).exists() or not weights.exists():
        return
    if weights.stat().st_mtime < (folder.parent / "bert_model.ckpt.index").stat().st_mtime:
        shutil.rmtree(folder)
        print(f"removed {folder}, of the model that was here before")


def used_model(options: EmbeddingOptions, start: InitialModel) -> tuple[InitialModel, bool]:
    """Return the model that is used, and whether it is what training left in the output folder.

    The original's commands give the pre-trained model and take what training left.

    Args:
        options: of the command.
        start: the model that the options name, or what training left.
    """
    if options.do_train or not options.model.init_checkpoint or _task_of_vectors(start):
        return start, False
    own = pathlib.Path(options.output_dir)
    trained = read_trained_task(own) if any(own.glob("bert_model.ckpt*")) else None
    if trained is None or trained.pooling is None:
        return start, False
    return start.trained(own), True


def _task_of_vectors(start: InitialModel) -> TrainedTask | None:
    """Return what a model that was trained for vectors says of them."""
    if start.weights_path is None:
        return None
    folder = start.weights_path.parent
    known = read_trained_task(folder) or read_sentence_transformers(folder)
    return known if known is not None and known.pooling is not None else None


def vector_settings(options: EmbeddingOptions, start: InitialModel) -> dict[str, Any]:
    """Return "pooling" and "normalize": what the options say, or else what the model was made for.

    Args:
        options: of the command.
        start: the model to begin with.
    """
    known = _task_of_vectors(start) or TrainedTask("similarity", pooling="mean", normalize=True)
    normalize = known.normalize if options.normalize is None else options.normalize
    return {"pooling": options.pooling or known.pooling, "normalize": normalize}


# === Data ===


def objective_of(options: EmbeddingOptions) -> str:
    """Return what is learned from: what the options say, or else what the training data have.

    Raises:
        InputError: the data do not have what the objective needs.
    """
    columns, objective = options.columns, options.objective
    if options.files.train_file is None:  # the official data
        if objective == "pairs":
            raise InputError(
                f"objective: {options.task_name} has scores of pairs that may not belong together; "
                "use scores or dropout, or name a --train_file of pairs"
            )
        return objective or "scores"
    if objective is None:
        objective = "scores" if columns.label else "pairs" if columns.text_b else "dropout"
    needed = {"scores": ("text_b", "label"), "pairs": ("text_b",), "dropout": ()}[objective]
    for name in needed:
        if not getattr(columns, name):
            raise InputError(f"{name}_column: needed for --objective={objective}")
    return objective


def find_source(options: EmbeddingOptions, part: str) -> tuple[str, Source]:
    """Find the kind of task that a part of the data is for, and where its examples come from.

    Args:
        options: of the command.
        part: "train", "dev" or "test".

    Raises:
        InputError: options are missing.
        ValueError, OSError: a file that is not there, or is none of the kind.
    """
    path = options.files.by_split().get(part)
    objective = objective_of(options) if part == "train" and (path or options.task_name) else None
    if path is not None:
        return _table_source(options, part, path, objective)
    if options.task_name is None:
        raise InputError(f"{part}_file: needed, or --task_name and --data_dir")
    kind = "retrieval" if objective == "dropout" else "similarity"
    path = reader_of(_task_of(options, part, kind)).find_file(
        _task_of(options, part, kind), options.files.folder, part
    )
    max_score = text_groups.STS_MAX_SCORE
    read = functools.partial(text_groups.read_sts, path, part, max_score)
    return kind, _source_of(part, path, read, {"task": "sts-b", "max_score": max_score}, objective)


def _table_source(
    options: EmbeddingOptions, part: str, path: str, objective: str | None
) -> tuple[str, Source]:
    columns, negatives = options.columns, options.negative_columns if part == "train" else ()
    if columns.text is None:
        raise InputError("text_column: needed to read tables of your own")
    if len(columns.label) > 1:
        raise InputError(f"label_column: expected one, got {', '.join(columns.label)}")
    if part != "train" and columns.text_b is None:
        raise InputError(f"text_b_column: needed, for the {part} file is of pairs")
    scored = objective == "scores" if objective else tables.has_labels(path, columns)
    if part == "test" or not scored:
        columns = dataclasses.replace(columns, label=())  # of test files nobody uses them
    if objective == "dropout":
        columns = dataclasses.replace(columns, text_b=None)
    max_score = options.max_score or 1.0
    read = functools.partial(text_groups.read_table, path, columns, negatives, part, max_score)
    described = dataclasses.asdict(columns) | {"file_format": tables.format_of(path, columns)}
    settings = {"columns": described, "negatives": list(negatives), "max_score": max_score}
    kind = "similarity" if scored else "retrieval"
    return kind, _source_of(part, path, read, settings, objective)


def _source_of(
    part: str, path: str, read: Any, settings: dict[str, Any], objective: str | None
) -> Source:
    """Return the groups of texts that `read` yields, or each of their texts twice."""
    is_repeated = objective == "dropout"

    def groups(on_bad: OnBad, on_skip: OnBad) -> Iterator[text_groups.TextGroup]:
        found = read(on_bad=on_bad)
        return text_groups.repeated(found) if is_repeated else found

    settings = {"reader": "text_groups", "repeated": is_repeated, **settings}
    return Source(part, (path,), groups, settings)


def _task_of(options: EmbeddingOptions, part: str, kind: str) -> Task:
    others = len(options.negative_columns) if part == "train" else 0
    return text_groups.text_task(kind, options.task_name or "texts", 2 + others)


def _check_training(options: EmbeddingOptions, start: InitialModel) -> None:
    """Refuse what would learn nothing, and say among what the partner of a text is sought."""
    objective = objective_of(options)
    if options.negative_columns and objective != "pairs":
        raise InputError(f"negative_columns: are for pairs, got --objective={objective}")
    print(f"learns from {objective}")
    if objective == "scores":
        return
    config = start.config
    dropout = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob)
    if objective == "dropout" and not dropout:
        raise InputError(
            "objective: the model has no dropout, which is all that makes two vectors of a text "
            "differ; set hidden_dropout_prob in its configuration"
        )
    strategy, training = strategy_of(options.training), options.training
    replicas = strategy.num_replicas_in_sync if strategy is not None else 1
    parts = replicas * training.gradient_accumulation_steps
    among = {one.train_batch_size: one.train_batch_size // parts for one in options.combinations()}
    for size, count in among.items():
        if count < 2:
            name = "train_batch_sizes" if options.train_batch_sizes else "train_batch_size"
            raise InputError(
                f"{name}: a text finds its partner among those of its part of the batch, which "
                f"would be {count} of {size} in {parts} parts"
            )
    of = "its batch" if parts == 1 else f"its part of a batch, of {parts} on {replicas} devices"
    counts = " or ".join(f"{count:,}" for count in among.values())
    print(f"each text seeks its partner among the {counts} of {of}")


# === Figures ===


@dataclasses.dataclass(frozen=True)
class _Search:
    """Which texts are sought among which.

    Attributes:
        queries: numbers of the examples whose first text is each query.
        documents: numbers of the examples whose second text is each document.
        relevant: for each query the documents that belong to it, by place in `documents`.
        own: for each query the document that is the query's own text, which is sought among the
            others, as in training; () where there is none.
    """

    queries: np.ndarray
    documents: np.ndarray
    relevant: Sequence[set[int]]
    own: Sequence[Sequence[int]]

    @classmethod
    def of(cls, text_ids: np.ndarray) -> "_Search":
        """Make it of the numbers of texts [N, 2]; equal texts are one query, or one document."""
        (query_ids, queries, query_of), (document_ids, documents, document_of) = (
            np.unique(text_ids[:, place], return_index=True, return_inverse=True)
            for place in range(2)
        )
        relevant: list[set[int]] = [set() for _ in queries]
        for query, document in zip(query_of, document_of, strict=True):
            relevant[query].add(int(document))
        document_with = {text: place for place, text in enumerate(document_ids.tolist())}
        own = [
            (document_with[text],) if text in document_with else () for text in query_ids.tolist()
        ]
        return cls(queries, documents, relevant, own)


class VectorEvaluator:
    """Figures of a model's vectors on the dev split.

    Pairs with scores have correlations of the cosine with them. Of other pairs each first text is a
    query, and the second texts of all are what is searched.

    Attributes:
        task: the task of the split.
        data: its records.
    """

    def __init__(self, data: splits.Data, options: EmbeddingOptions):
        self.task, self.data, self._options = data.task, data, options
        self._records = data.records("dev")
        self._labels = np.asarray(self._records.labels())
        self._search = _Search.of(self._labels) if data.task.kind == "retrieval" else None
        if self._search is not None:
            found = len(self._search.queries), len(self._search.documents)
            print(f"dev: {found[0]:,} texts whose partners are sought among {found[1]:,}")

    def __call__(self, model: keras.Model) -> dict[str, float]:
        """Return the figures of a model, made with `grouped`."""
        size = self._options.eval_batch_size
        outputs = splits.predict_records(self._records, model, self._options, batch_size=size)
        vectors, search = outputs["logits"], self._search  # [N, 2, D]
        if search is None:
            return splits.figures_of(self.task, vectors, self._labels)
        return retrieval_scores(
            vectors[search.queries, 0], vectors[search.documents, 1], search.relevant, search.own
        )

    @property
    def baseline(self) -> float | None:
        """The selection metric of vectors that are all alike."""
        return get_kind(self.task.kind).constant_figure(self._labels, self.task.selection_metric)

    def report(self, loaded: LoadedModel) -> None:
        """Evaluate a model, write eval_results.txt and .json, and print them."""
        figures = self(loaded.model)
        results: dict[str, Any] = {f"eval_{name}": value for name, value in figures.items()}
        folder = pathlib.Path(self._options.output_dir)
        write_results(folder, with_step(results, loaded.transfer.step))
        print("evaluation:")
        print_table([(name, f"{value:.6g}") for name, value in results.items()])
