"""A converted checkpoint compared with the original on the same inputs."""

import importlib.util
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.command_line.tables import print_rows

FORMATS = ("tf1", "hf", "keras_hub", "keras")
_BATCH, _LENGTH, _CHOICES, _PREDICTIONS = 4, 29, 3, 5
# Fields of the configuration that may be changed on the way; flags of these names.
OVERRIDES = (
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


# === Outputs of each system ===


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


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as 2x3, or scalar."""
    return "x".join(map(str, shape)) or "scalar"


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
    from bert_tf.models.variables import to_numpy, weights_by_name

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
    from bert_tf.weights.checkpoint import open_checkpoint
    from bert_tf.weights.layouts import OURS
    from bert_tf.weights.load import load_model
    from bert_tf.weights.locate import locate

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
