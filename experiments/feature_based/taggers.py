"""BiLSTM taggers on stored features (section 5.3 of the paper)."""

import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from bert_tf.files import local_copy, write_json, write_text
from bert_tf.models.bilstm_tagger import FEATURE_CHOICES, bilstm_tagger
from bert_tf.models.feature_extraction import TokenWindow, stored_features
from bert_tf.options import to_dict
from bert_tf.tasks.entity_metrics import EntityScores, entity_scores
from data_prep.finetuning import ner
from data_prep.finetuning.tables import tell_labels
from data_prep.processes.progress import Progress
from experiments.command_line import training_setup
from experiments.feature_based.model import FrozenModel, check_length, load_model
from experiments.feature_based.options import ALL_SIX, CHOICES, SETTINGS, TaggerOptions
from experiments.feature_based.tagged_files import TaggedFile, read_sentences

_CLIP_NORM = 1.0
Figures = Mapping[str, Any]  # as feature_based.json holds them


# === One tagger ===


class Tagger(NamedTuple):
    """A model, and what it takes and gives.

    Attributes:
        model: features -> logits of each piece.
        states: hidden states that its features are, 0 being the embeddings.
        weighted: whether it sums them with weights of its own.
        labels: names of the labels in the order of the logits.
    """

    model: keras.Model
    states: tuple[int, ...]
    weighted: bool
    labels: list[str]

    def predict(self, file: TaggedFile, batch_size: int) -> list[list[str]]:
        """Return the tags of the words of each sentence."""
        longest = max(len(window.input_ids) for window in file.windows)
        ids = np.zeros((len(file.windows), longest), np.int32)
        for rows in file.batches(batch_size, None):
            logits = self.model.predict_on_batch(file.batch(rows, self.states, self.weighted))
            ids[rows, : logits.shape[1]] = logits.argmax(axis=-1)
        return ner.collect_tags(file.windows, ids, self.labels)

    def scores(self, file: TaggedFile, batch_size: int) -> EntityScores:
        """Return how the predicted tags of a file compare with its own."""
        true = [s.tags for s in file.sentences]
        return entity_scores(true, self.predict(file, batch_size), self.labels)

    def mix(self) -> dict[str, float]:
        """Return the weight of each hidden state, where they are summed."""
        weights = keras.ops.softmax(self.model.get_layer("scalar_mix").mix_weights)
        values = keras.ops.convert_to_numpy(weights).round(4).tolist()
        return dict(zip(map(str, self.states), values, strict=True))


def make_tagger(
    options: TaggerOptions, name: str, labels: list[str], width: int, num_layers: int
) -> Tagger:
    """Make a tagger that is to be trained.

    Args:
        options: sizes and learning rate.
        name: of the choice of features.
        labels: names of the labels.
        width: numbers in a hidden state.
        num_layers: layers of the encoder.
    """
    choice = FEATURE_CHOICES[name]
    states = choice.hidden_states(num_layers)
    model = bilstm_tagger(
        width if choice.weighted else width * len(states),
        len(labels),
        len(states) if choice.weighted else None,
        lstm_size=options.lstm_size,
        dropout_rate=options.dropout_rate,
    )
    model.compile(
        keras.optimizers.Adam(options.learning_rate, global_clipnorm=_CLIP_NORM),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        # Lengths differ from batch to batch, and XLA would compile for each; JAX must.
        jit_compile=keras.backend.backend() == "jax",
    )
    return Tagger(model, states, choice.weighted, labels)


class _TrainingBatches(keras.utils.PyDataset):
    """The training windows, in another order in every epoch."""

    def __init__(self, file: TaggedFile, tagger: Tagger, batch_size: int, seed: int):
        super().__init__()
        self.file, self.tagger, self.batch_size = file, tagger, batch_size
        self.label_ids = {label: i for i, label in enumerate(tagger.labels)}
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self):
        self.rows = self.file.batches(self.batch_size, self.random)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        rows = self.rows[index]
        inputs = self.file.batch(rows, self.tagger.states, self.tagger.weighted)
        return inputs, *self.file.labels(rows, inputs["input_mask"].shape[1], self.label_ids)


class _BestEpoch(keras.callbacks.Callback):
    """Scores the eval file after each epoch; of equal ones the first is kept.

    Attributes:
        epochs: loss and eval F1 of each epoch.
        best: the highest eval F1.
        best_weights: weights of the model then.
    """

    def __init__(self, eval_f1: Callable[[], float], title: str):
        super().__init__()
        self.eval_f1, self.title = eval_f1, title
        self.epochs: list[dict[str, float]] = []
        self.best, self.best_weights = -1.0, None
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        f1 = self.eval_f1()
        self.epochs.append({"loss": float((logs or {})["loss"]), "eval_f1": f1})
        if f1 > self.best:
            self.best, self.best_weights = f1, self.model.get_weights()
        print(
            f"{self.title}, epoch {epoch + 1}/{self.params['epochs']}: "
            f"loss {self.epochs[-1]['loss']:.4f}, eval F1 {f1:.2f}, "
            f"{time.monotonic() - self.began:.0f} s",
            flush=True,
        )


def train_tagger(
    options: TaggerOptions,
    name: str,
    seed: int,
    files: Mapping[str, TaggedFile],
    labels: list[str],
    num_layers: int,
) -> tuple[dict[str, Any], dict[str, EntityScores]]:
    """Train one tagger, and keep the weights of its best epoch.

    Args:
        options: of training.
        name: of the choice of features.
        seed: of initial weights, dropout and order.
        files: train, eval and, where there is one, test.
        labels: names of the labels.
        num_layers: layers of the encoder.

    Returns:
        Figures for feature_based.json, and the scores of the eval and test files.
    """
    keras.utils.set_random_seed(seed)
    began = time.monotonic()
    train = files["train"]
    tagger = make_tagger(options, name, labels, train.features.values.shape[2], num_layers)

    def scores(part: str) -> EntityScores:
        return tagger.scores(files[part], options.eval_batch_size)

    best = _BestEpoch(lambda: scores("eval").f1, f"{name}, seed {seed}")
    batches = _TrainingBatches(train, tagger, options.train_batch_size, seed)
    tagger.model.fit(batches, epochs=options.num_train_epochs, verbose=0, callbacks=[best])
    tagger.model.set_weights(best.best_weights)
    tagger.model.save(pathlib.Path(options.output_dir) / f"{name}-seed-{seed}.keras")
    scores_of = {part: scores(part) for part in ("eval", "test") if part in files}
    figures: dict[str, Any] = {
        "best_epoch": 1 + [epoch["eval_f1"] for epoch in best.epochs].index(best.best),
        "epochs": best.epochs,
        "seconds": round(time.monotonic() - began, 1),
    }
    if tagger.weighted:
        figures["mix"] = tagger.mix()
    for part, score in scores_of.items():
        for figure in ("precision", "recall", "f1"):
            figures[f"{part}_{figure}"] = getattr(score, figure)
        figures[f"{part}_by_type"] = {
            kind: {"f1": s.f1, "num_true": s.num_true} for kind, s in score.by_type.items()
        }
    return figures, scores_of


# === Results ===


def mean_and_std(figures: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the standard deviation of a sample (0 of a single one)."""
    return statistics.fmean(figures), statistics.stdev(figures) if len(figures) > 1 else 0.0


def table(results: Mapping[str, Figures]) -> str:
    """Return the table of the choices, in Markdown."""
    with_test = any("test_f1" in result for result in results.values())
    lines = ["| features | hidden states | dev F1 |" + (" test F1 |" if with_test else "")]
    lines.append("|---|---|---|" + ("---|" if with_test else ""))
    for name, result in results.items():
        cells = [FEATURE_CHOICES[name].description, ", ".join(map(str, result["hidden_states"]))]
        for part in ("eval", "test"):
            if f"{part}_f1" in result:
                cells.append(f"{result[f'{part}_f1']:.2f} ± {result[f'{part}_f1_std']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def failed_taggers(results: Mapping[str, Figures]) -> dict[str, str]:
    """Return what is to be said of each tagger that is no better than one that tags nothing."""
    return {
        f"{name}-seed-{seed}": f"{name}, seed {seed}: eval F1 0 is not above that of a constant "
        "answer"
        for name, result in results.items()
        for seed, figures in result["seeds"].items()
        if figures["eval_f1"] == 0
    }


def _write_results(
    options: TaggerOptions, labels: list[str], results: Mapping[str, Figures], reports: list[str]
) -> None:
    """Write feature_based.json and feature_based.md, as far as the choices of features are."""
    folder = pathlib.Path(options.output_dir)
    values = to_dict(options)
    content = {
        "settings": {name: values[name] for name in SETTINGS if values[name] is not None},
        "labels": labels,
        "results": results,
        "failed": failed_taggers(results),
    }
    write_json(folder / "feature_based.json", content, sort_keys=False)
    about = (
        f"Mean and standard deviation over {len(options.seeds)} seeds; {options.num_train_epochs} "
        f"epochs, the best of each kept by dev F1; BiLSTM of 2 x {options.lstm_size}."
    )
    text = "\n".join([table(results), about + "\n", *reports])
    write_text(folder / "feature_based.md", text)


# === The run ===


def _with_features(
    options: TaggerOptions,
    part: str,
    sentences: list[ner.Sentence],
    frozen: FrozenModel,
    states: Sequence[int],
) -> TaggedFile:
    """Compute the features of a file, or find them in the cache."""
    windows = ner.sentence_windows(
        sentences, frozen.tokenizer, options.max_seq_length, options.tagged.document_context
    )
    with Progress(f"features of {part}", len(windows), "texts") as progress:
        stored = stored_features(
            options.cache_dir or pathlib.Path(options.output_dir) / "feature_cache",
            frozen.encoder,
            [TokenWindow(window.input_ids) for window in windows],
            states,
            batch_size=options.encoder_batch_size,
            on_text=lambda: progress.update(1),
        )
    print(
        f"{part}: {len(sentences):,} sentences, {sum(len(s.words) for s in sentences):,} words in "
        f"{len(windows):,} windows of {stored.offsets[-1]:,} tokens; features "
        f"{'computed' if stored.computed else 'found'}, {stored.values.nbytes / 1e6:.0f} MB",
        flush=True,
    )
    return TaggedFile(sentences, windows, stored)


def _train_choice(
    options: TaggerOptions,
    name: str,
    files: Mapping[str, TaggedFile],
    labels: list[str],
    num_layers: int,
) -> tuple[dict[str, Any], list[str]]:
    """Train the taggers of one choice of features, one for each seed.

    Returns:
        Their figures, and the reports of the best one by eval F1.
    """
    runs: dict[str, dict[str, Any]] = {}
    scores_of: dict[int, dict[str, EntityScores]] = {}
    for seed in map(int, options.seeds):
        runs[str(seed)], scores_of[seed] = train_tagger(
            options, name, seed, files, labels, num_layers
        )
    best = max(scores_of, key=lambda seed: scores_of[seed]["eval"].f1)
    choice = FEATURE_CHOICES[name]
    result: dict[str, Any] = {"hidden_states": list(choice.hidden_states(num_layers))}
    for part in scores_of[best]:
        f1 = [figures[f"{part}_f1"] for figures in runs.values()]
        result[f"{part}_f1"], result[f"{part}_f1_std"] = mean_and_std(f1)
    paths = {"eval": options.dev_file, "test": options.test_file}
    reports = [
        f"{choice.description}, seed {best}, {paths[part]}:\n\n```\n{score.report()}```\n"
        for part, score in scores_of[best].items()
    ]
    return {**result, "seeds": runs}, reports


def run(options: TaggerOptions) -> dict[str, dict[str, Any]]:
    """Train and evaluate as the options say.

    Returns:
        {features: figures}, as in feature_based.json.

    Raises:
        ValueError, OSError: bad input; one line says what.
        InputError: another process trains in the output folder.
    """
    began = time.monotonic()
    paths = {"train": options.train_file, "eval": options.dev_file, "test": options.test_file}
    sentences = read_sentences(
        {part: local_copy(path) for part, path in paths.items() if path}, options
    )
    labels = ner.label_names(s for part in sentences.values() for s in part)
    counts = Counter(tag for sentence in sentences["train"] for tag in sentence.tags)
    tell_labels(f"{options.train_file}: column {options.tagged.tag_column}", labels, counts)
    frozen = load_model(options.model)
    check_length(options.max_seq_length, frozen.config)
    num_layers = frozen.config.num_hidden_layers
    names = CHOICES if options.features == ALL_SIX else (options.features,)
    states = sorted({s for name in names for s in FEATURE_CHOICES[name].hidden_states(num_layers)})
    folder = pathlib.Path(options.output_dir)
    with training_setup.locked(folder):
        files = {
            part: _with_features(options, part, sentences[part], frozen, states)
            for part in sentences
        }
        write_text(folder / "labels.txt", "".join(f"{label}\n" for label in labels))
        results: dict[str, dict[str, Any]] = {}
        reports: list[str] = []
        for name in names:
            results[name], of_choice = _train_choice(options, name, files, labels, num_layers)
            reports += of_choice
            _write_results(options, labels, results, reports)
    print(f"\n{table(results)}\n" + "\n".join(reports))
    failed = failed_taggers(results)
    for reason in failed.values():
        print(f"failed: {reason}")
    if failed:
        print("what may help: more --num_train_epochs, another --learning_rate")
    print(f"wrote {folder / 'feature_based.md'}; {time.monotonic() - began:.0f} s in all")
    return results
