"""Conversion of a checkpoint from any format to any other."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from experiments.command_line.tables import print_rows
from experiments.conversion.verify import OVERRIDES, shape_text, verify


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
        shape, source_shape = shape_text(move.shape), shape_text(move.source_shape)
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


# === The script ===


def _check_target(source: str, target: pathlib.Path, file_format: str, overwrite: bool) -> None:
    from bert_tf.tokenization.vocabulary import VOCAB_NAME
    from bert_tf.weights.locate import (
        CONFIG_NAME,
        KERAS_SUFFIX,
        KERAS_WEIGHTS_SUFFIX,
        LABELS_NAME,
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
    from bert_tf.weights.keras_hub_export import check_keras_hub, save_keras_hub
    from bert_tf.weights.save import save_hf, save_keras, save_model_directory

    source, target, file_format = getattr(values, "from"), pathlib.Path(values.to), values.format
    _check_target(source, target, file_format, values.overwrite)
    config = BertConfig.from_json_file(values.bert_config_file) if values.bert_config_file else None
    overrides = {n: getattr(values, n) for n in OVERRIDES if getattr(values, n) is not None}
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
