r"""Fills in [MASK] with a SavedModel of `export_model.py`, or with a model directory.

For a SavedModel it needs TensorFlow and tensorflow_text and nothing of this package: what the
SavedModel holds is enough.

    python experiments/fill_mask.py --saved_model=quickstart/fill_mask \
      --text='Return the [MASK] of the list.'
    python experiments/fill_mask.py --model_dir=tiny-wikipedia \
      --text='The film was released in the United [MASK] in 1995.'

Without --text it reads sentences from standard input, one a line. --output_file writes the answers
as JSON too, a line a sentence.
"""

import json
import logging
import pathlib
import sys

from absl import app, flags

MASK_TOKEN = "[MASK]"
# Group -> flag -> what it means.
FLAGS = {
    "data": {"text": "Sentence with [MASK]; may be given several times."},
    "model": {
        "saved_model": "SavedModel, or folder of versions.",
        "model_dir": "In its place: model directory, checkpoint or name; needs this package.",
    },
    "output": {"output_file": "JSON lines: text, and tokens and scores by [MASK]."},
}


# As in bert_tf.serving.predictor, which this script does without.
def newest_version(path: str) -> pathlib.Path:
    """Folder of a SavedModel: the path, or its subfolder with the highest number.

    Raises:
        FileNotFoundError: neither holds a SavedModel.
    """
    if "://" in path:
        raise FileNotFoundError(f"--saved_model: expected a folder on this machine, got {path!r}")
    root = pathlib.Path(path)
    versions = [p for p in root.glob("*/saved_model.pb") if p.parent.name.isdecimal()]
    if (root / "saved_model.pb").is_file():
        return root
    if not versions:
        raise FileNotFoundError(f"--saved_model: no saved_model.pb in {path!r} or its versions")
    return max(versions, key=lambda p: int(p.parent.name)).parent


def filled(sentence: str, pieces: list[str]) -> str:
    """Replace each [MASK] of a sentence; a piece that begins with ## joins the word before."""
    parts = sentence.split(MASK_TOKEN)
    text = parts[0]
    for piece, part in zip(pieces, parts[1:], strict=False):
        text = text.rstrip() + piece[2:] if piece.startswith("##") else text + piece
        text += part
    # Masks beyond the model's longest sequence stay.
    return MASK_TOKEN.join([text, *parts[len(pieces) + 1 :]])


def answers_of_saved_model(path: str, sentences: list[str]) -> dict:
    """Return tokens [B, masks, k], scores [B, masks, k] and mask_count [B] for sentences.

    Raises:
        FileNotFoundError: there is no SavedModel.
    """
    folder = newest_version(path)
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the operations of the tokenizer)

    model = tf.saved_model.load(str(folder))
    output = model.signatures["serving_default"](text=tf.constant(sentences))
    return {name: value.numpy() for name, value in output.items()}


def answers_of_model(path: str, sentences: list[str]) -> dict:
    """Return the same of a model directory, checkpoint or name.

    Raises:
        ImportError: this package is not installed.
        OSError, ValueError: there is no such model, or it has no head for this.
    """
    from bert_tf.serving.predictor import Predictor

    logging.getLogger("bert_tf").setLevel(logging.WARNING)
    return Predictor(path, task="fill_mask").predict(sentences)


def main(argv: list[str]) -> None:
    """Run the script."""
    if len(argv) > 1:
        sys.exit(f"fill_mask: unexpected argument {argv[1]!r}: use --text")
    values = flags.FLAGS
    sentences = values.text or [line.strip() for line in sys.stdin if line.strip()]
    try:
        if not sentences:
            raise ValueError("no sentences: give --text or lines on standard input")
        for sentence in sentences:
            if MASK_TOKEN not in sentence:
                raise ValueError(f"--text: expected {MASK_TOKEN} in {sentence!r}")
        if not pathlib.Path(values.output_file or "x").absolute().parent.is_dir():
            raise ValueError(f"--output_file: no such folder here: {values.output_file}")
        if bool(values.saved_model) == bool(values.model_dir):
            given = "both" if values.model_dir else "neither"
            raise ValueError(f"expected one of --saved_model and --model_dir, got {given}")
        if values.saved_model:
            output = answers_of_saved_model(values.saved_model, sentences)
        else:
            output = answers_of_model(values.model_dir, sentences)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"fill_mask: {error}")
    answers = []
    for i, sentence in enumerate(sentences):
        masks = int(output["mask_count"][i])
        tokens = [[t.decode() for t in row] for row in output["tokens"][i, :masks]]
        scores = output["scores"][i, :masks]
        print(sentence)
        print("  " + filled(sentence, [row[0] for row in tokens]))
        for row, row_scores in zip(tokens, scores, strict=True):
            candidates = zip(row, row_scores, strict=True)
            print("    " + "  ".join(f"{token} {score:.3f}" for token, score in candidates))
        answers.append({"text": sentence, "tokens": tokens, "scores": scores.tolist()})
    if values.output_file:
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        pathlib.Path(values.output_file).write_text(lines, encoding="utf-8")


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    for group in FLAGS.values():
        for name, text in group.items():
            several = name == "text"
            define = flags.DEFINE_multi_string if several else flags.DEFINE_string
            define(name, None, text, flag_values=values)


def help_text() -> str:
    """Return the docstring, as it is typed, and the flags by group."""
    text = (__doc__ or "").strip()
    if pathlib.Path(sys.orig_argv[min(1, len(sys.orig_argv) - 1)]).stem == "bert-tf":
        text = text.replace("python experiments/fill_mask.py", "bert-tf fill_mask")
    lines = [f"fill_mask: {text}"]
    for group, meanings in FLAGS.items():
        lines += ["", group, *(f"  --{name:<13}{meaning}" for name, meaning in meanings.items())]
    return "\n".join(lines)


def parse(arguments: list[str]) -> list[str]:
    """Parse the flags, as other commands do, but without this package."""
    if {"-h", "--help", "--helpfull", "--help=all"} & set(arguments[1:]):
        print(help_text())
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"fill_mask: {error}; --help lists the flags")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main, flags_parser=parse)
