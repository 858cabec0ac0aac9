"""Converts a checkpoint of any system that has BERT into another's, and verifies the result.

    python experiments/convert_checkpoint.py --from=uncased_L-12_H-768_A-12 --to=bert-hf --format=hf
    python experiments/convert_checkpoint.py --from=bert-hf --to=bert-tf1 --format=tf1

Reads what bert_tf.load_model reads: TF1 checkpoints, transformers directories and files, KerasHub
presets, TF Model Garden checkpoints, .keras and .weights.h5 files. The format of --from is found
out. --to is a directory, or for --format=keras a name ending in .keras or .weights.h5.

Prints the weights that were moved, ignored and missing, and compares outputs on a fixed batch: of
the source in its own system, where that is installed, of the model between, and of the target, read
back here and in its own system. Ends with status 1 if they differ.
"""

import dataclasses
import functools
import importlib.util
import logging as python_logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be looked up elsewhere

import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from experiments.command_line.exit_status import exit_on_error  # noqa: E402

FORMATS = ("tf1", "hf", "keras_hub", "keras")
_BATCH, _LENGTH, _CHOICES, _PREDICTIONS = 4, 29, 3, 5
# Fields of the configuration that may be changed on the way; flags of these names.
_OVERRIDES = (
    "hidden_act",
    "layer_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_SENTENCES = (
    "The quick brown fox didn't jump over the lazy dog's 12.5 kg bowl.",
    "Café Zoë, naïve façades; 東京 and Ελλάδα — (1810.04805)!",
    "unaffable UNAFFABLE Unaffable",
)


class Mismatch(RuntimeError):
    """Source and target differ."""


def fixed_batch(config: Any, kind: str) -> dict[str, np.ndarray]:
    """Make the batch that outputs are compared on: random ids, padded rows, two segments.

    Args:
        config: BertConfig of the model.
        kind: key of `heads.HEADS`.

    Returns:
        int32 [B, F] under the names of the model's inputs, [B, C, F] for multiple choice.
    """
    random = np.random.default_rng(20181011)
    length = min(_LENGTH, config.max_position_embeddings)
    shape = (_BATCH, _CHOICES, length) if kind == "multiple_choice" else (_BATCH, length)
    lengths = random.integers(max(1, length // 3), length + 1, (*shape[:-1], 1))
    lengths.flat[0] = length
    positions = np.arange(length)
    mask = positions < lengths
    segments = (positions >= lengths // 2) & mask & (config.type_vocab_size > 1)
    ids = random.integers(0, config.vocab_size, shape) * mask
    batch = {"input_ids": ids, "input_mask": mask, "segment_ids": segments}
    if kind == "pretraining":
        batch["masked_lm_positions"] = random.integers(0, length, (_BATCH, _PREDICTIONS))
    return {name: value.astype(np.int32) for name, value in batch.items()}


# --- outputs of each system -----------------------------------------------------------------------


def _arrays(outputs: Any) -> dict[str, np.ndarray]:
    if not isinstance(outputs, dict):
        outputs = {"logits": outputs}
    import keras

    if keras.backend.backend() != "tensorflow":  # whose tensors warn when they are converted so
        return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}
    return {name: np.asarray(value) for name, value in outputs.items()}


def our_outputs(model: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model of this package."""
    return _arrays(model(batch, training=False))


# Names of transformers' outputs -> ours, where they are not "logits".
_HF_OUTPUTS = {
    "encoder": {"last_hidden_state": "sequence_output", "pooler_output": "pooled_output"},
    "span": {"start_logits": "start_logits", "end_logits": "end_logits"},
    "pretraining": {
        "prediction_logits": "masked_lm_logits",
        "logits": "masked_lm_logits",
        "seq_relationship_logits": "next_sentence_logits",
    },
}


def hf_outputs(
    directory: str, kind: str, next_sentence: bool, batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run the model of a directory in transformers, under the names of our outputs."""
    import torch
    import transformers

    from bert_tf.weights.layouts import HF_ARCHITECTURES

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    masked_lm = kind == "pretraining" and not next_sentence
    architecture = HF_ARCHITECTURES["masked_lm" if masked_lm else kind][0]
    model_class = getattr(transformers, architecture)
    model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
    names = {
        "input_ids": "input_ids",
        "input_mask": "attention_mask",
        "segment_ids": "token_type_ids",
    }
    with torch.no_grad():
        found = model(**{names[n]: torch.tensor(v).long() for n, v in batch.items() if n in names})
    outputs = {}
    for name, ours in _HF_OUTPUTS.get(kind, {"logits": "logits"}).items():
        if found.get(name) is not None:
            outputs[ours] = found[name].numpy()
    if "masked_lm_logits" in outputs:  # theirs are of all positions
        rows = np.arange(_BATCH)[:, None]
        outputs["masked_lm_logits"] = outputs["masked_lm_logits"][
            rows, batch["masked_lm_positions"]
        ]
    return outputs


def keras_hub_outputs(directory: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the backbone of a preset in KerasHub."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(directory, dtype="float32")
    return _arrays(
        backbone(
            {
                "token_ids": batch["input_ids"],
                "padding_mask": batch["input_mask"],
                "segment_ids": batch["segment_ids"],
            }
        )
    )


def own_system(
    layout: str, located: Any, kind: str, next_sentence: bool
) -> tuple[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None]:
    """Return what a checkpoint's own system is called, and how to run it; None where it cannot.

    Args:
        layout: name of the checkpoint's layout.
        located: `checkpoint_formats.LocatedCheckpoint`.
        kind: key of `heads.HEADS`.
        next_sentence: whether a model for pre-training has that head.
    """
    if layout == "transformers":
        path = pathlib.Path(located.path)
        standard = path.name.startswith(("model.safetensors", "pytorch_model.bin"))
        if not standard or not (path.parent / "config.json").exists():
            return "transformers (takes a directory with config.json)", None
        if not all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
            return "transformers (not installed)", None
        return layout, lambda batch: hf_outputs(str(path.parent), kind, next_sentence, batch)
    if layout == "KerasHub":
        return layout, lambda batch: keras_hub_outputs(located.path, batch)
    return f"{layout} (does not run beside this package)", None


# --- reporting ------------------------------------------------------------------------------------


def print_rows(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table with aligned columns under a title; nothing for no rows."""
    if not rows:
        return
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(("  " + "  ".join(cells)).rstrip())


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def fold_layers(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Fold rows that differ in the number of the layer alone, into one with "*" and a count.

    The first cell, our name, tells the layer; the number appended is of rows folded together.
    """
    folded: dict[tuple[str, ...], int] = {}
    for row in rows:
        layer = re.search(r"/layer_(\d+)/", row[0])
        cells = row
        if layer:
            number = rf"(?<=[._/-])({layer[1]}|{int(layer[1]) + 4})(?=[./])"
            cells = (row[0].replace(layer[0], "/layer_*/"), re.sub(number, "*", row[1], count=1))
            cells += row[2:]
        folded[cells] = folded.get(cells, 0) + 1
    return [(*cells, f"x {count}" if count > 1 else "") for cells, count in folded.items()]


def print_transfer(transfer: Any, verbose: bool) -> None:
    """Print tables of the weights that were moved, missing and ignored."""
    rows = []
    for move in transfer.moved:
        shape, source_shape = _shape(move.shape), _shape(move.source_shape)
        rows.append(
            (
                move.name,
                "" if move.source_name == move.name else move.source_name,
                shape if shape == source_shape else f"{source_shape} -> {shape}",
            )
        )
    shown = [(*row, "") for row in rows] if verbose else fold_layers(rows)
    if not any(row[1] for row in shown):
        shown = [(row[0], *row[2:]) for row in shown]
    print_rows(f"moved: {len(rows)} weights (name here, name there if another, shape)", shown)
    for title, names in (
        ("missing in the source, at their initial values", transfer.missing),
        ("ignored in the source", transfer.ignored),
    ):
        print_rows(f"{title}: {len(names)}", [(name,) for name in names])


def compare(
    what: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray], tolerance: float
) -> tuple[tuple[str, str, str], bool]:
    """Compare outputs by name.

    Returns:
        A row of the table, and whether they agree. Nothing in common is a difference.
    """
    common = [name for name in first if name in second]
    if not common:
        return (what, "no output in common", "DIFFERS"), False
    differences = {}
    for name in common:
        if first[name].shape != second[name].shape:
            return (what, f"{name}: {first[name].shape}, {second[name].shape}", "DIFFERS"), False
        differences[name] = float(np.max(np.abs(first[name] - second[name]), initial=0.0))
    equal = all(value <= tolerance for value in differences.values())  # False for NaN
    text = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    return (what, text, "equal" if equal else "DIFFERS"), equal


def _weights(model: Any) -> dict[str, np.ndarray]:
    from bert_tf.weights.checkpoint import to_numpy, weights_by_name

    return {n: to_numpy(v) for n, v in weights_by_name(model).items()}


def verify(
    source: Any, target: str, written: str, skipped: Sequence[str], tolerance: float, changed: bool
) -> None:
    """Compare source, the model between and target; see the module's docstring.

    Args:
        source: `checkpoints.LoadedModel` of the source, with `.located`.
        target: directory or file that was asked for.
        written: what holds the weights in it.
        skipped: weights that the target has no place for.
        tolerance: of absolute differences of outputs.
        changed: whether fields of the configuration were changed on the way.

    Raises:
        Mismatch: they differ.
    """
    from bert_tf.weights.checkpoint import locate, open_checkpoint
    from bert_tf.weights.layouts import OURS
    from bert_tf.weights.load import load_model

    loaded, located = source
    batch = fixed_batch(loaded.config, loaded.kind)
    between = our_outputs(loaded.model, batch)
    rows, verdicts = [], []

    def add(row_and_verdict):
        rows.append(row_and_verdict[0])
        verdicts.append(row_and_verdict[1])

    def add_own(what, layout, place, kind, inputs):
        if layout == OURS.name:
            return
        system, run = own_system(layout, place, kind, loaded.config.next_sentence_prediction)
        if run is None:
            rows.append((what, system, "not compared"))
        else:
            add(compare(f"{what} in {system}", between, run(inputs), tolerance))

    if changed:
        rows.append(("source", "the configuration was changed on the way", "not compared"))
    else:
        add_own("source", loaded.transfer.layout, located, loaded.kind, batch)
    if locate(target).path != written:
        raise Mismatch(
            f"{target} holds another checkpoint, {locate(target).path}, which is read in place of "
            f"{written}; convert into an empty directory"
        )
    again = load_model(
        written,
        kind=None if skipped else loaded.kind,
        do_lower_case=loaded.tokenizer and loaded.tokenizer.do_lower_case,
    )
    ours, theirs = _weights(loaded.model), _weights(again.model)
    unequal = [
        name
        for name, value in ours.items()
        if name not in skipped and not (name in theirs and np.array_equal(theirs[name], value))
    ]
    text = f"{len(ours) - len(skipped) - len(unequal)} weights equal to the bit"
    verdicts.append(not unequal)
    text += f", {len(unequal)} not: {', '.join(unequal[:5])}" if unequal else ""
    rows.append(("target, read back", text, "DIFFERS" if unequal else "equal"))
    encoder_only = again.kind == "encoder" != loaded.kind
    if encoder_only:
        # Only the encoder was written: what it should give is in the model's first layer.
        layer = loaded.model.get_layer("bert")
        flat = {n: v.reshape(-1, v.shape[-1]) for n, v in batch.items() if n.endswith(("ids", "k"))}
        between = _arrays(layer(flat, training=False))
        batch = flat
    add(compare("target, read back", between, our_outputs(again.model, batch), tolerance))
    add_own("target", open_checkpoint(target).layout.name, locate(target), again.kind, batch)
    if importlib.util.find_spec("transformers"):
        for what, layout, place in (
            ("source", loaded.transfer.layout, located),
            ("target", again.transfer.layout, locate(target)),
        ):
            if layout == "transformers" and has_hf_tokenizer(place):
                add(_compare_tokenizers(what, loaded.tokenizer, place.path))
    print_rows("verified (largest absolute differences)", rows)
    if not all(verdicts):
        raise Mismatch(f"source and target differ by more than {tolerance:g}; see above")


def has_hf_tokenizer(located: Any) -> bool:
    """Tell whether a tokenizer that transformers can load lies beside weights."""
    folder = pathlib.Path(located.path).parent
    has_vocabulary = any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json"))
    return has_vocabulary and (folder / "config.json").exists()


def _compare_tokenizers(
    what: str, tokenizer: Any, weights: str
) -> tuple[tuple[str, str, str], bool]:
    """Compare the tokenizer beside weights of transformers, as it loads it, with ours."""
    import transformers

    what = f"tokenizer of the {what} in transformers"
    if tokenizer is None:
        return (what, "none of BERT's here", "DIFFERS"), False
    theirs = transformers.AutoTokenizer.from_pretrained(os.path.dirname(weights))
    equal = sum(
        theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        for text in _SENTENCES
    )
    same = equal == len(_SENTENCES)
    text = f"{equal} of {len(_SENTENCES)} sentences"
    return (what, text, "equal" if same else "DIFFERS"), same


# --- the script -----------------------------------------------------------------------------------


def _check_target(source: str, target: pathlib.Path, file_format: str, overwrite: bool) -> None:
    from bert_tf.weights.checkpoint import (
        CONFIG_NAME,
        KERAS_SUFFIX,
        KERAS_WEIGHTS_SUFFIX,
        LABELS_NAME,
        VOCAB_NAME,
    )

    is_file = target.name.endswith((KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX))
    if is_file != (file_format == "keras"):
        raise ValueError(
            f"--to: expected {'a name ending in .keras or .weights.h5' if not is_file else ''}"
            f"{'a directory' if is_file else ''} for --format={file_format}, got {target}"
        )
    beside = [target.parent / name for name in (CONFIG_NAME, VOCAB_NAME, LABELS_NAME)]
    if is_file and not overwrite and (found := [str(path) for path in beside if path.exists()]):
        raise ValueError(
            f"--to: {', '.join(found)} would be replaced; name a file in another folder, or "
            "--overwrite"
        )
    if target.exists():
        # A file or the prefix of a TensorFlow checkpoint may lie in the folder that is written to.
        place = pathlib.Path(source)
        if not place.is_dir() and target.is_dir():
            place = place.parent
        if place.exists() and target.samefile(place):
            raise ValueError(f"--to: is where --from lies: {target}")
        if not overwrite and (target.is_file() or any(target.iterdir())):
            raise ValueError(f"--to: {target} exists; --overwrite writes into it")


def convert(values: flags.FlagValues) -> None:
    """Convert by the flags.

    Raises:
        ValueError, OSError: bad input; one line says what.
        Mismatch: the result is not what the source is.
    """
    from bert_tf.config import BertConfig
    from bert_tf.weights import load
    from bert_tf.weights.checkpoint import open_checkpoint
    from bert_tf.weights.save import (
        check_keras_hub,
        save_hf,
        save_keras,
        save_keras_hub,
        save_model_directory,
    )

    source, target, file_format = getattr(values, "from"), pathlib.Path(values.to), values.format
    _check_target(source, target, file_format, values.overwrite)
    config = BertConfig.from_json_file(values.bert_config_file) if values.bert_config_file else None
    overrides = {n: getattr(values, n) for n in _OVERRIDES if getattr(values, n) is not None}
    opened = open_checkpoint(source, config=config)
    loaded = load.load_model(
        opened,
        kind=values.kind,
        config=config,
        do_lower_case=values.do_lower_case,
        ignore=values.ignore,
        allow_missing=values.allow_missing,
        **overrides,
    )
    if file_format == "keras_hub":
        check_keras_hub(loaded.config)
    tokenizer = loaded.tokenizer
    print(f"found {loaded.transfer.description}, in the layout of {loaded.transfer.layout}")
    casing = tokenizer and ("uncased" if tokenizer.do_lower_case else "cased")
    facts = [
        ("kind of model", loaded.kind),
        ("parameters", f"{loaded.model.count_params():,}"),
        ("vocabulary", f"{len(tokenizer.vocab):,} pieces, {casing}" if tokenizer else "none found"),
        ("labels", ", ".join(loaded.labels) if loaded.labels else ""),
        ("training step", "" if loaded.transfer.step is None else f"{loaded.transfer.step:,}"),
    ]
    config_text = {
        k: v for k, v in dataclasses.asdict(loaded.config).items() if k != "ignored_keys"
    }
    if opened.state:
        facts.append(("left aside", f"{len(opened.state)} optimizer slots, buffers and copies"))
    facts += [(name, str(value)) for name, value in config_text.items()]
    print_rows("it holds", [fact for fact in facts if fact[1]])
    print_transfer(loaded.transfer, values.all_weights)

    skipped: Sequence[str] = ()
    if file_format == "tf1":
        save_model_directory(target, loaded.model, labels=loaded.labels, tokenizer=tokenizer)
    elif file_format == "hf":
        skipped = save_hf(target, loaded.model, tokenizer, loaded.labels)
    elif file_format == "keras_hub":
        skipped = save_keras_hub(target, loaded.model, tokenizer)
    else:
        save_keras(target, loaded.model, tokenizer, loaded.labels)
    print_rows(f"the target has no place for: {len(skipped)}", [(name,) for name in skipped])
    files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"\nwrote {target} ({size / 1e6:.1f} MB)")
    if values.verify:
        names = {"tf1": "bert_model.ckpt", "hf": "model.safetensors"}
        written = str(target / names[file_format]) if file_format in names else str(target)
        verify(
            (loaded, opened.located),
            str(target),
            written,
            skipped,
            values.tolerance,
            bool(overrides),
        )


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the script."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    patterns = functools.partial(flags.DEFINE_multi_string, flag_values=values)
    choice = functools.partial(flags.DEFINE_enum, flag_values=values)
    text("from", None, "Checkpoint: directory, file or TensorFlow prefix.", required=True)
    text("to", None, "What to write.", required=True)
    choice("format", None, FORMATS, "The target's format.", required=True)
    text("bert_config_file", None, "Configuration; by default the source's.")
    text("kind", None, "Kind of model; by default what the weights say.")
    boolean("do_lower_case", None, "Casing; by default what the source says.")
    patterns("ignore", [], "Regular expression of weights of the source to leave; repeatable.")
    patterns("allow_missing", [], "Regular expression of weights that it may lack; repeatable.")
    text("hidden_act", None, "Activation to take in place of the source's.")
    number("layer_norm_eps", None, "Epsilon to take in place of the source's.")
    integer("vocab_size", None, "Cut or extend the word embeddings to this.")
    integer("max_position_embeddings", None, "Cut or extend the positions to this.")
    integer("type_vocab_size", None, "Cut or extend the segment embeddings to this.")
    boolean("overwrite", False, "Write into a target that exists.")
    boolean("all_weights", False, "List every layer's weights, not one line for all.")
    boolean("verify", True, "Compare source and target.")
    number("tolerance", 1e-4, "Largest absolute difference of outputs.")


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("bert_tf").setLevel(python_logging.WARNING)
    return exit_on_error("convert_checkpoint", lambda: convert(values))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
