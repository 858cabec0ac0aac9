"""BiLSTM taggers on stored features (section 5.3 of the paper)."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from bert_tf.tasks.entity_metrics import EntityScores, entity_scores
from data_prep.finetuning import ner
from experiments.feature_based.flags import ALL_SIX, CHOICES, FLAG_NAMES

_SORTED_BATCHES = 32  # batches' worth of shuffled texts that are sorted by length at a time
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Split:
    """One file, ready to train on or to be tagged.

    Attributes:
        sentences: its sentences.
        windows: their `ner.Window`s.
        features: `bert_tf.models.feature_extraction.StoredFeatures` of the windows.
    """

    sentences: list[ner.Sentence]
    windows: list[ner.Window]
    features: Any

    def batch(self, rows: Sequence[int], states: Sequence[int], weighted: bool):
        """Return the tagger's inputs for some windows, padded to the longest of them.

        Args:
            rows: the windows.
            states: hidden states.
            weighted: whether they stay apart, to be summed with weights; else they are put
                together.
        """
        columns = [self.features.layers.index(state) for state in states]
        # From the first to the last column at once: picking from a memory map is slow.
        low, high = min(columns), max(columns) + 1
        columns = [column - low for column in columns]
        width = self.features.values.shape[2]
        length = max(len(self.windows[row].input_ids) for row in rows)
        values = np.zeros((len(rows), length, len(columns), width), np.float32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            found = self.features[row][:, low:high]
            values[i, : len(found)] = found[:, columns]
            mask[i, : len(found)] = 1
        if not weighted:
            values = values.reshape(len(rows), length, -1)
        return {"features": values, "input_mask": mask}

    def labels(self, rows: Sequence[int], length: int, label_ids: dict[str, int]):
        """Return integer labels [B, F] and their weights [B, F], 1 where a label counts."""
        labels = np.zeros((len(rows), length), np.int32)
        weights = np.zeros((len(rows), length), np.float32)
        for i, row in enumerate(rows):
            for sentence, word, position in self.windows[row].words:
                labels[i, position] = label_ids[self.sentences[sentence].tags[word]]
                weights[i, position] = 1
        return labels, weights

    def batches(self, batch_size: int, random: np.random.Generator | None) -> list[list[int]]:
        """Group the windows into batches of like length; shuffled if a generator is given."""
        lengths = [len(window.input_ids) for window in self.windows]
        order = list(range(len(lengths)))
        pool = len(order)
        if random is not None:
            random.shuffle(order)
            pool = batch_size * _SORTED_BATCHES
        for start in range(0, len(order), pool):
            order[start : start + pool] = sorted(
                order[start : start + pool], key=lengths.__getitem__
            )
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if random is not None:
            random.shuffle(batches)
        return batches


def read_split(path: str, values: flags.FlagValues) -> list[ner.Sentence]:
    """Read a file by the flags; ValueError and OSError as `ner.read_sentences`."""
    convert = ner.TAG_SCHEMES[values.tag_scheme]
    return [
        dataclasses.replace(sentence, tags=convert(sentence.tags))
        for sentence in ner.read_sentences(
            path, token_column=values.token_column, tag_column=values.tag_column
        )
    ]


def predict(model: Any, split: Split, choice: Any, states, labels, batch_size: int):
    """Tag a file.

    Returns:
        For each sentence the tags of its words.
    """
    longest = max(len(window.input_ids) for window in split.windows)
    ids = np.zeros((len(split.windows), longest), np.int32)
    for rows in split.batches(batch_size, None):
        logits = model.predict_on_batch(split.batch(rows, states, choice.weighted))
        ids[rows, : logits.shape[1]] = logits.argmax(axis=-1)
    return ner.collect_tags(split.windows, ids, labels)


def train_tagger(values: flags.FlagValues, name: str, seed: int, splits, labels, num_layers: int):
    """Train one tagger, and keep the weights of its best epoch.

    Returns:
        (figures for feature_based.json, {split: `metrics.EntityScores`}).
    """
    import keras

    from bert_tf.models.bilstm_tagger import FEATURE_CHOICES, bilstm_tagger

    keras.utils.set_random_seed(seed)
    choice = FEATURE_CHOICES[name]
    states = choice.hidden_states(num_layers)
    width = splits["train"].features.values.shape[2]
    model = bilstm_tagger(
        width if choice.weighted else width * len(states),
        len(labels),
        len(states) if choice.weighted else None,
        lstm_size=values.lstm_size,
        dropout_rate=values.dropout_rate,
    )
    model.compile(
        keras.optimizers.Adam(values.learning_rate, global_clipnorm=_CLIP_NORM),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        # Lengths differ from batch to batch, and XLA would compile for each; JAX must.
        jit_compile=keras.backend.backend() == "jax",
    )
    label_ids = {label: i for i, label in enumerate(labels)}
    train = splits["train"]

    class Batches(keras.utils.PyDataset):
        """The training windows, in another order in every epoch."""

        def __init__(self):
            super().__init__()
            self.random = np.random.default_rng(seed)
            self.on_epoch_end()

        def on_epoch_end(self):
            self.rows = train.batches(values.train_batch_size, self.random)

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            rows = self.rows[index]
            inputs = train.batch(rows, states, choice.weighted)
            return inputs, *train.labels(rows, inputs["input_mask"].shape[1], label_ids)

    def scores_of(split: Split) -> EntityScores:
        found = predict(model, split, choice, states, labels, values.eval_batch_size)
        return entity_scores([s.tags for s in split.sentences], found)

    began = time.monotonic()
    epochs: list[dict[str, float]] = []

    class Evaluate(keras.callbacks.Callback):
        """Scores the eval file after each epoch; of equal ones the first is kept."""

        best, best_weights = -1.0, None

        def on_epoch_end(self, epoch, logs=None):
            f1 = scores_of(splits["eval"]).f1
            epochs.append({"loss": float((logs or {})["loss"]), "eval_f1": f1})
            if f1 > self.best:
                self.best, self.best_weights = f1, model.get_weights()
            seconds = time.monotonic() - began
            print(
                f"{name}, seed {seed}, epoch {epoch + 1}/{values.num_train_epochs}: "
                f"loss {epochs[-1]['loss']:.4f}, eval F1 {f1:.2f}, {seconds:.0f} s",
                flush=True,
            )

    evaluate = Evaluate()
    model.fit(Batches(), epochs=values.num_train_epochs, verbose=0, callbacks=[evaluate])
    model.set_weights(evaluate.best_weights)
    model.save(os.path.join(values.output_dir, f"{name}-seed-{seed}.keras"))
    scores = {part: scores_of(splits[part]) for part in ("eval", "test") if part in splits}
    figures: dict[str, Any] = {
        "best_epoch": 1 + [epoch["eval_f1"] for epoch in epochs].index(evaluate.best),
        "epochs": epochs,
        "seconds": round(time.monotonic() - began, 1),
    }
    if choice.weighted:
        mix = model.get_layer("scalar_mix")
        weights = keras.ops.convert_to_numpy(keras.ops.softmax(mix.mix_weights))
        figures["mix"] = dict(zip(map(str, states), weights.round(4).tolist(), strict=True))
    for part, score in scores.items():
        for figure in ("precision", "recall", "f1"):
            figures[f"{part}_{figure}"] = getattr(score, figure)
        figures[f"{part}_by_type"] = {
            kind: {"f1": s.f1, "num_true": s.num_true} for kind, s in score.by_type.items()
        }
    return figures, scores


def mean_and_std(figures: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the standard deviation of a sample (0 of a single one)."""
    return statistics.fmean(figures), statistics.stdev(figures) if len(figures) > 1 else 0.0


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of the choices, in Markdown."""
    from bert_tf.models.bilstm_tagger import FEATURE_CHOICES

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


def failed_taggers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what is to be said of each tagger that is no better than one that tags nothing."""
    return {
        f"{name}-seed-{seed}": f"{name}, seed {seed}: eval F1 0 is not above that of a constant "
        "answer"
        for name, result in results.items()
        for seed, figures in result["seeds"].items()
        if figures["eval_f1"] == 0
    }


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _parse_seeds(texts: Sequence[str]) -> list[int]:
    seeds = [int(text) for text in texts if text.strip().isdecimal()]
    if not seeds or not len(texts) == len(seeds) == len(set(seeds)):
        raise ValueError(
            f"--seeds: expected distinct integers of at least 0, got {','.join(texts)!r}"
        )
    return seeds


def _check_flags(values: flags.FlagValues) -> None:
    from experiments.feature_based.flags import check_model_flags

    check_model_flags(values)
    for name in (
        *("num_train_epochs", "train_batch_size", "eval_batch_size", "encoder_batch_size"),
        "lstm_size",
    ):
        if getattr(values, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(values, name)}")
    if not values.learning_rate > 0:
        raise ValueError(f"--learning_rate: expected above 0, got {values.learning_rate}")
    if not 0 <= values.dropout_rate < 1:
        raise ValueError(f"--dropout_rate: expected 0 to below 1, got {values.dropout_rate}")


def run(values: flags.FlagValues) -> dict[str, dict[str, Any]]:
    """Train and evaluate by the flags.

    Returns:
        {features: figures}, as in feature_based.json.

    Raises:
        ValueError, OSError: bad input; one line says what.
    """
    began = time.monotonic()
    seeds = _parse_seeds(values.seeds)
    _check_flags(values)
    paths = {"train": values.train_file, "eval": values.eval_file, "test": values.test_file}
    sentences = {part: read_split(path, values) for part, path in paths.items() if path}
    labels = ner.label_names(s for part in sentences.values() for s in part)

    from bert_tf.models.bilstm_tagger import FEATURE_CHOICES
    from bert_tf.models.feature_extraction import TokenWindow, stored_features
    from data_prep.processes.progress import Progress
    from experiments.feature_based.model import check_length, load_model

    loaded = load_model(values)
    config = loaded.config
    check_length(values.max_seq_length, config)
    names = CHOICES if values.features == ALL_SIX else (values.features,)
    states_of = {n: FEATURE_CHOICES[n].hidden_states(config.num_hidden_layers) for n in names}
    states = sorted({state for chosen in states_of.values() for state in chosen})
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    cache = values.cache_dir or folder / "feature_cache"

    splits: dict[str, Split] = {}
    for part, found in sentences.items():
        windows = ner.sentence_windows(
            found, loaded.tokenizer, values.max_seq_length, values.document_context
        )
        with Progress(f"features of {part}", len(windows), "texts") as progress:
            stored = stored_features(
                cache,
                loaded.encoder,
                [TokenWindow(window.input_ids) for window in windows],
                states,
                batch_size=values.encoder_batch_size,
                on_text=lambda progress=progress: progress.update(1),
            )
        splits[part] = Split(found, windows, stored)
        print(
            f"{part}: {len(found):,} sentences, {sum(len(s.words) for s in found):,} words in "
            f"{len(windows):,} windows of {stored.offsets[-1]:,} tokens; features "
            f"{'computed' if stored.computed else 'found'}, {stored.values.nbytes / 1e6:.0f} MB",
            flush=True,
        )
    _write(folder / "labels.txt", "".join(f"{label}\n" for label in labels))

    results: dict[str, dict[str, Any]] = {}
    reports = []
    for name in names:
        runs, best = {}, (-1.0, -1, {})
        for seed in seeds:
            figures, scores = train_tagger(
                values, name, seed, splits, labels, config.num_hidden_layers
            )
            runs[str(seed)] = figures
            best = max(best, (scores["eval"].f1, seed, scores), key=lambda item: item[0])
        result: dict[str, Any] = {"hidden_states": list(states_of[name])}
        for part in scores:
            figures_of = [one[f"{part}_f1"] for one in runs.values()]
            result[f"{part}_f1"], result[f"{part}_f1_std"] = mean_and_std(figures_of)
        results[name] = {**result, "seeds": runs}
        for part, score in best[2].items():
            reports.append(
                f"{FEATURE_CHOICES[name].description}, seed {best[1]}, {paths[part]}:\n\n"
                f"```\n{score.report()}```\n"
            )
        settings = {
            flag: values[flag].value for flag in FLAG_NAMES if values[flag].value is not None
        }
        failed = failed_taggers(results)
        content = {"settings": settings, "labels": labels, "results": results, "failed": failed}
        _write(folder / "feature_based.json", json.dumps(content, indent=2) + "\n")
        about = (
            f"Mean and standard deviation over {len(seeds)} seeds; {values.num_train_epochs} "
            f"epochs, the best of each kept by dev F1; BiLSTM of 2 x {values.lstm_size}."
        )
        _write(
            folder / "feature_based.md",
            "\n".join([table(results), about + "\n", *reports]),
        )
    print(f"\n{table(results)}\n" + "\n".join(reports))
    for reason in failed.values():
        print(f"failed: {reason}")
    if failed:
        print("what may help: more --num_train_epochs, another --learning_rate")
    print(f"wrote {folder / 'feature_based.md'}; {time.monotonic() - began:.0f} s in all")
    return results
