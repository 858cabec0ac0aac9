"""A converted checkpoint compared with the original on the same inputs."""

import importlib.util
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from bert_tf.config import BertConfig
from bert_tf.models.variables import to_numpy, weights_by_name
from bert_tf.tasks.kinds import get_kind
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import open_checkpoint
from bert_tf.weights.layouts import HF_ARCHITECTURES, HF_KINDS, OURS
from bert_tf.weights.load import LoadedModel, load_model
from bert_tf.weights.locate import LocatedCheckpoint, locate
from experiments.command_line.tables import print_rows

_BATCH, _LENGTH, _CHOICES, _PREDICTIONS = 4, 29, 3, 5
_SENTENCES = (
    "The quick brown fox didn't jump over the lazy dog's 12.5 kg bowl.",
    "Café Zoë, naïve façades; 東京 and Ελλάδα — (1810.04805)!",
    "unaffable UNAFFABLE Unaffable",
)


Arrays = dict[str, np.ndarray]  # inputs or outputs of a model, by name
Row = tuple[str, str, str]  # of the table that is printed: what, how much, the verdict


class Mismatch(RuntimeError):
    """Source and target differ."""


def fixed_batch(config: BertConfig, kind: str) -> Arrays:
    """Make the batch that outputs are compared on: random ids, padded rows, two segments.

    Args:
        config: of the model.
        kind: key of `heads.HEADS`.

    Returns:
        int32 [B, F] under the names of the model's inputs, [B, C, F] for multiple choice and for a
        classifier of texts in windows.
    """
    random = np.random.default_rng(20181011)
    length = min(_LENGTH, config.max_position_embeddings)
    in_windows = kind == "classification" and config.window_pooling is not None
    has_choices = kind == "multiple_choice" or in_windows
    shape = (_BATCH, _CHOICES, length) if has_choices else (_BATCH, length)
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


def _arrays(outputs: Any) -> Arrays:
    if not isinstance(outputs, dict):
        outputs = {"logits": outputs}
    if keras.backend.backend() != "tensorflow":  # whose tensors warn when they are converted so
        return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}
    return {name: np.asarray(value) for name, value in outputs.items()}


def our_outputs(model: keras.Model, batch: Arrays) -> Arrays:
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


def hf_outputs(directory: str, kind: str, next_sentence: bool, batch: Arrays) -> Arrays:
    """Run the model of a directory in transformers, under the names of our outputs."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    masked_lm = kind == "pretraining" and not next_sentence
    architecture = HF_ARCHITECTURES["masked_lm" if masked_lm else kind][0]
    model_class = getattr(transformers, architecture)
    # Of a local folder transformers would ask the Hub all the same.
    model = model_class.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    model.eval()
    names = {
        "input_ids": "input_ids",
        "input_mask": "attention_mask",
        "segment_ids": "token_type_ids",
    }
    with torch.no_grad():
        theirs = model(**{names[n]: torch.tensor(v).long() for n, v in batch.items() if n in names})
    outputs: Arrays = {}
    for name, ours in _HF_OUTPUTS.get(kind, {"logits": "logits"}).items():
        if theirs.get(name) is not None:
            outputs[ours] = theirs[name].numpy()
    if "masked_lm_logits" in outputs:  # theirs are of all positions
        rows = np.arange(_BATCH)[:, None]
        outputs["masked_lm_logits"] = outputs["masked_lm_logits"][
            rows, batch["masked_lm_positions"]
        ]
    if kind == "classification" and (task := _task_of_hf(model.config)) is not None:
        outputs |= _answers(outputs, task)
    return outputs


def _task_of_hf(config: Any) -> str | None:
    """Return the kind of task that a pipeline of transformers answers for a classifier."""
    if config.problem_type is None:
        # Of one output the model makes a number and the pipeline a probability: nothing to compare.
        return "classification" if config.num_labels > 1 else None
    return HF_KINDS[config.problem_type]


def _answers(outputs: Arrays, task: str | None) -> Arrays:
    """Return what a user gets of a classifier's logits: probabilities, or a number."""
    logits = outputs["logits"].astype(np.float64)
    return {"answers": get_kind(task or "classification").probabilities(logits)}


def keras_hub_outputs(directory: str, batch: Arrays) -> Arrays:
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
    layout: str, located: LocatedCheckpoint, kind: str, next_sentence: bool
) -> tuple[str, Callable[[Arrays], Arrays] | None]:
    """Return what a checkpoint's own system is called, and how to run it; None where it cannot.

    Args:
        layout: name of the checkpoint's layout.
        located: where it lies.
        kind: key of `heads.HEADS`.
        next_sentence: whether a model for pre-training has that head.
    """
    if layout == "transformers":
        path = pathlib.Path(located.path)
        standard = path.name.startswith(("model.safetensors", "pytorch_model.bin"))
        if not standard or not (path.parent / "config.json").exists():
            return "transformers (takes a directory with config.json)", None
        config = BertConfig.from_json_file(path.parent / "config.json")
        if kind == "classification" and config.window_pooling is not None:
            return "transformers (reads one window of a text)", None
        if not all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
            return "transformers (not installed)", None
        return layout, lambda batch: hf_outputs(str(path.parent), kind, next_sentence, batch)
    if layout == "KerasHub":
        return layout, lambda batch: keras_hub_outputs(located.path, batch)
    return f"{layout} (does not run beside this package)", None


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as 2x3, or scalar."""
    return "x".join(map(str, shape)) or "scalar"


def compare(what: str, first: Arrays, second: Arrays, tolerance: float) -> tuple[Row, bool]:
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


def round_weights(loaded: LoadedModel, dtype: str) -> None:
    """Round the weights of a model to those that a file holds, and print what that changes."""
    batch = fixed_batch(loaded.config, loaded.kind)
    before = our_outputs(loaded.model, batch)
    for weight in loaded.model.weights:
        weight.assign(to_numpy(weight).astype(dtype).astype(weight.dtype))
    row, _ = compare("outputs", before, our_outputs(loaded.model, batch), math.inf)
    print_rows(f"weights rounded to {dtype} (largest absolute differences)", [row[:2]])


def _compare_weights(
    ours: keras.Model, theirs: keras.Model, skipped: Sequence[str]
) -> tuple[Row, bool]:
    """Compare the weights of two models to the bit."""
    expected, actual = weights_by_name(ours), weights_by_name(theirs)
    unequal = [
        name
        for name, weight in expected.items()
        if name not in skipped
        and not (name in actual and np.array_equal(to_numpy(actual[name]), to_numpy(weight)))
    ]
    text = f"{len(expected) - len(skipped) - len(unequal)} weights equal to the bit"
    text += f", {len(unequal)} not: {', '.join(unequal[:5])}" if unequal else ""
    return ("target, read back", text, "DIFFERS" if unequal else "equal"), not unequal


class _Comparisons:
    """Rows of the table that is printed, and whether all comparisons agree."""

    def __init__(self, loaded: LoadedModel, tolerance: float):
        self.loaded, self.tolerance = loaded, tolerance
        self.rows: list[Row] = []
        self.agree = True

    def add(self, row: Row, equal: bool) -> None:
        """Note one comparison."""
        self.rows.append(row)
        self.agree &= equal

    def add_own_system(
        self,
        what: str,
        layout: str,
        place: LocatedCheckpoint,
        kind: str,
        expected: Arrays,
        batch: Arrays,
        task: str | None = None,
    ) -> None:
        """Compare the outputs that a checkpoint's own system has for a batch with ours."""
        if layout == OURS.name:
            return
        if kind == "classification":
            expected = expected | _answers(expected, task)
        next_sentence = self.loaded.config.next_sentence_prediction
        system, outputs_of = own_system(layout, place, kind, next_sentence)
        if outputs_of is None:
            self.rows.append((what, system, "not compared"))
        else:
            self.add(*compare(f"{what} in {system}", expected, outputs_of(batch), self.tolerance))

    def add_tokenizer(self, what: str, layout: str, place: LocatedCheckpoint) -> None:
        """Compare the tokenizer beside weights, as transformers loads it, where it can."""
        if (
            importlib.util.find_spec("transformers")
            and layout == "transformers"
            and has_hf_tokenizer(place)
        ):
            self.add(*_compare_tokenizers(what, self.loaded.tokenizer, place.path))


def verify(
    loaded: LoadedModel,
    original: LocatedCheckpoint,
    target: str,
    written: str,
    skipped: Sequence[str],
    tolerance: float,
    changed: bool,
    task: str | None = None,
) -> None:
    """Compare the source, the model between and the target.

    Args:
        loaded: the model between, as it was loaded from the source.
        original: where the source lies.
        target: directory or file that was asked for.
        written: what holds the weights in it.
        skipped: weights that the target has no place for.
        tolerance: of absolute differences of outputs.
        changed: whether the configuration was changed on the way, or weights rounded, so that the
            source's own system would give other outputs.
        task: key of `tasks.KINDS` that a classifier is for, where known: what it makes of its
            logits is compared, too.

    Raises:
        Mismatch: they differ.
    """
    batch = fixed_batch(loaded.config, loaded.kind)
    expected = our_outputs(loaded.model, batch)
    comparisons = _Comparisons(loaded, tolerance)
    layout = loaded.transfer.layout
    if changed:
        text = "configuration or weights were changed on the way"
        comparisons.rows.append(("source", text, "not compared"))
    else:
        comparisons.add_own_system("source", layout, original, loaded.kind, expected, batch, task)
    place = locate(target)
    if place.path != written:
        raise Mismatch(
            f"{target} holds another checkpoint, {place.path}, which is read in place of "
            f"{written}; convert into an empty directory"
        )
    again = load_model(
        written,
        kind=None if skipped else loaded.kind,
        do_lower_case=loaded.tokenizer and loaded.tokenizer.do_lower_case,
    )
    comparisons.add(*_compare_weights(loaded.model, again.model, skipped))
    if again.kind == "encoder" != loaded.kind:
        # Only the encoder was written: what it should give is in the model's first layer.
        encoder_inputs = ("input_ids", "input_mask", "segment_ids")
        batch = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in encoder_inputs}
        expected = _arrays(loaded.model.get_layer("bert")(batch, training=False))
    outputs = our_outputs(again.model, batch)
    comparisons.add(*compare("target, read back", expected, outputs, tolerance))
    target_layout = open_checkpoint(target).layout.name
    comparisons.add_own_system("target", target_layout, place, again.kind, expected, batch, task)
    comparisons.add_tokenizer("source", layout, original)
    comparisons.add_tokenizer("target", again.transfer.layout, place)
    print_rows("verified (largest absolute differences)", comparisons.rows)
    if not comparisons.agree:
        raise Mismatch(f"source and target differ by more than {tolerance:g}; see above")


def has_hf_tokenizer(located: LocatedCheckpoint) -> bool:
    """Tell whether a tokenizer that transformers can load lies beside weights."""
    folder = pathlib.Path(located.path).parent
    has_vocabulary = any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json"))
    return has_vocabulary and (folder / "config.json").exists()


def _compare_tokenizers(
    what: str, tokenizer: FullTokenizer | None, weights: str
) -> tuple[Row, bool]:
    """Compare the tokenizer beside weights of transformers, as it loads it, with ours."""
    import transformers

    what = f"tokenizer of the {what} in transformers"
    if tokenizer is None:
        return (what, "none of BERT's here", "DIFFERS"), False
    theirs = transformers.AutoTokenizer.from_pretrained(
        os.path.dirname(weights), local_files_only=True
    )
    equal = sum(
        theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        for text in _SENTENCES
    )
    same = equal == len(_SENTENCES)
    text = f"{equal} of {len(_SENTENCES)} sentences"
    return (what, text, "equal" if same else "DIFFERS"), same
