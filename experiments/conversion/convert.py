"""Conversion of a checkpoint from any format to any other."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence

from absl import logging

from bert_tf.config import BertConfig
from bert_tf.files import original_names
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.sentence_transformers import (
    MODULES_NAME,
    read_sentence_transformers,
    write_sentence_transformers,
)
from bert_tf.tasks.trained_task import TRAINED_TASK_NAME, TrainedTask, read_trained_task
from bert_tf.tokenization.vocabulary import VOCAB_NAME
from bert_tf.weights.checkpoint import Checkpoint, open_checkpoint
from bert_tf.weights.keras_hub import check_keras_hub, save_keras_hub
from bert_tf.weights.layouts import HF_KINDS, HF_PROBLEM_TYPES
from bert_tf.weights.load import LoadedModel, Transfer, load_model
from bert_tf.weights.locate import (
    CONFIG_NAME,
    KERAS_SUFFIX,
    KERAS_WEIGHTS_SUFFIX,
    LABELS_NAME,
    LocatedCheckpoint,
    locate,
)
from bert_tf.weights.save import save_hf, save_keras, save_model_directory
from bert_tf.weights.upload import upload_hf
from experiments.command_line.tables import print_rows
from experiments.conversion.options import ConversionOptions
from experiments.conversion.verify import round_weights, shape_text, verify

# Format of a directory -> the file in it that holds the weights.
_WEIGHTS_FILES = {"tf1": "bert_model.ckpt", "hf": "model.safetensors"}

# === What is printed ===


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


def print_transfer(transfer: Transfer, verbose: bool) -> None:
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


def _print_contents(loaded: LoadedModel, opened: Checkpoint) -> None:
    """Print what a checkpoint holds beside its weights."""
    transfer, tokenizer = loaded.transfer, loaded.tokenizer
    print(f"found {transfer.description}, in the layout of {transfer.layout}")
    casing = tokenizer and ("uncased" if tokenizer.do_lower_case else "cased")
    if tokenizer and tokenizer.strip_accents != tokenizer.do_lower_case:
        casing = f"{casing}, accents {'stripped' if tokenizer.strip_accents else 'kept'}"
    facts = [
        ("kind of model", loaded.kind),
        ("parameters", f"{loaded.model.count_params():,}"),
        ("vocabulary", f"{len(tokenizer.vocab):,} pieces, {casing}" if tokenizer else "none found"),
        ("labels", ", ".join(loaded.labels) if loaded.labels else ""),
        ("problem type", loaded.problem_type or ""),
        ("training step", "" if transfer.step is None else f"{transfer.step:,}"),
    ]
    if opened.state:
        facts.append(("left aside", f"{len(opened.state)} optimizer slots, buffers and copies"))
    config = dataclasses.asdict(loaded.config)
    facts += [(name, str(value)) for name, value in config.items() if name != "ignored_keys"]
    print_rows("it holds", [fact for fact in facts if fact[1]])


# === The run ===


def _check_target(source: str, target: pathlib.Path, file_format: str, overwrite: bool) -> None:
    is_file = target.name.endswith((KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX))
    if is_file != (file_format == "keras"):
        raise ValueError(
            f"--to: expected {'a name ending in .keras or .weights.h5' if not is_file else ''}"
            f"{'a directory' if is_file else ''} for --format={file_format}, got {target}"
        )
    names = (CONFIG_NAME, VOCAB_NAME, LABELS_NAME, TRAINED_TASK_NAME)
    beside = [target.parent / name for name in names]
    if is_file and not overwrite and (existing := [str(path) for path in beside if path.exists()]):
        raise ValueError(
            f"--to: {', '.join(existing)} would be replaced; name a file in another folder, or "
            "--overwrite"
        )
    if original_names(str(target)) == source.rstrip("/"):
        raise ValueError(f"--to: is where --from lies: {source}")
    if target.exists():
        # A file or the prefix of a TensorFlow checkpoint may lie in the folder that is written to.
        place = pathlib.Path(source)
        if not place.is_dir() and target.is_dir():
            place = place.parent
        if place.exists() and target.samefile(place):
            raise ValueError(f"--to: is where --from lies: {target}")
        if not overwrite and (target.is_file() or any(target.iterdir())):
            raise ValueError(f"--to: {target} exists; --overwrite writes into it")


def _trained_task(loaded: LoadedModel, source: LocatedCheckpoint | None) -> TrainedTask | None:
    """Return what the source says that its model is for, where it does and the head is kept."""
    trained = None
    if source is not None:
        folder = pathlib.Path(source.path).parent
        trained = read_trained_task(folder) or read_sentence_transformers(folder)
    if trained is None and loaded.problem_type is not None:
        trained = TrainedTask(HF_KINDS[loaded.problem_type])
    if trained is None or get_kind(trained.kind).head != loaded.kind:
        return None
    return trained


def _problem_type(trained: TrainedTask | None) -> str | None:
    """Return what transformers calls a task, where it is not what it takes a classifier for."""
    if trained is None or trained.kind == "classification":
        return None
    return HF_PROBLEM_TYPES.get(trained.kind)


def _write(
    loaded: LoadedModel,
    target: pathlib.Path,
    options: ConversionOptions,
    trained: TrainedTask | None,
) -> Sequence[str]:
    """Write a model in a format; return the weights that the format has no place for."""
    file_format = options.format
    if file_format != "keras":
        (target / MODULES_NAME).unlink(missing_ok=True)  # of a model that was here before
    skipped = _write_weights(loaded, target, options, trained)
    if trained is not None and file_format in ("hf", "keras_hub"):
        chosen = {"temperature": trained.temperature != 1, "thresholds": bool(trained.thresholds)}
        if names := " and ".join(name for name, is_chosen in chosen.items() if is_chosen):
            logging.warning("%s: the model has %s, which other libraries do not use", target, names)
    folder = target.parent if file_format == "keras" else target
    if trained is not None and file_format != "keras_hub":
        trained.write(folder)
    else:
        (folder / TRAINED_TASK_NAME).unlink(missing_ok=True)  # of a model that was here before
    return skipped


def _write_weights(
    loaded: LoadedModel,
    target: pathlib.Path,
    options: ConversionOptions,
    trained: TrainedTask | None,
) -> Sequence[str]:
    model, tokenizer, labels = loaded.model, loaded.tokenizer, loaded.labels
    if options.format == "tf1":
        save_model_directory(target, model, labels=labels, tokenizer=tokenizer)
    elif options.format == "hf":
        problem_type = _problem_type(trained)
        skipped = save_hf(target, model, tokenizer, labels, problem_type, options.weights)
        if trained is not None and trained.pooling is not None:
            write_sentence_transformers(target, trained, loaded.config.hidden_size)
        return skipped
    elif options.format == "keras_hub":
        return save_keras_hub(target, model, tokenizer)
    else:
        save_keras(target, model, tokenizer, labels)
    return ()


def run(options: ConversionOptions) -> None:
    """Convert as the options say.

    Raises:
        ValueError, OSError: bad input; one line says what.
        Mismatch: the result is not what the source is.
    """
    target, file_format = pathlib.Path(options.target), options.format
    _check_target(options.source, target, file_format, options.overwrite)
    path = options.bert_config_file
    config = BertConfig.from_json_file(path) if path else None
    fields = dataclasses.asdict(options.changes)
    changes = {name: value for name, value in fields.items() if value is not None}
    opened = open_checkpoint(options.source, config=config)
    loaded = load_model(
        opened,
        kind=options.kind,
        config=config,
        do_lower_case=options.do_lower_case,
        ignore=options.ignore,
        allow_missing=options.allow_missing,
        **changes,
    )
    if loaded.tokenizer:
        tokenizer = loaded.tokenizer.with_strip_accents(options.strip_accents)
        loaded = loaded._replace(tokenizer=tokenizer)
    if file_format == "keras_hub":
        check_keras_hub(loaded.config)
    _print_contents(loaded, opened)
    print_transfer(loaded.transfer, options.all_weights)
    trained = _trained_task(loaded, opened.located)
    skipped = _write(loaded, target, options, trained)
    print_rows(f"the target has no place for: {len(skipped)}", [(name,) for name in skipped])
    files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"\nwrote {target} ({size / 1e6:.1f} MB)")
    if options.verify:
        if options.weights != "float32":
            round_weights(loaded, options.weights)
        name = _WEIGHTS_FILES.get(file_format)
        written = str(target / name) if name else str(target)
        original = locate(options.source)
        tolerance = options.tolerance
        changed = bool(changes) or options.weights != "float32"
        kind = trained.kind if trained is not None else None
        verify(loaded, original, str(target), written, skipped, tolerance, changed, kind)
    if options.upload_to is not None:
        print(f"\nuploaded: {upload_hf(options.upload_to, target)}")
