"""Exports a model directory as a SavedModel that takes plain strings.

    python experiments/export_model.py --model_dir=runs/mini --saved_model=exported/mini

The model directory is one of run_pretraining.py, or any checkpoint with a masked LM head that
bert_tf.load_model reads. The SavedModel is written as a new version in --saved_model, as TF Serving
reads it, and answers with candidates for each [MASK] (see bert_tf/export.py).
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging  # noqa: E402


def main(argv: list[str]) -> None:
    """Run the script; bad input ends it with one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every renamed input.
    from bert_tf.checkpoints import load_model, looks_uncased
    from bert_tf.export import export_fill_mask
    from bert_tf.tokenization import load_vocab

    try:
        found = load_model(values.model_dir, kind="pretraining", do_lower_case=values.do_lower_case)
        vocab_file = values.vocab_file or (found.tokenizer and found.tokenizer.vocab_file)
        if not vocab_file:
            raise FileNotFoundError(
                f"--model_dir: no vocab.txt in {values.model_dir!r}; name it with --vocab_file"
            )
        casing = values.do_lower_case
        if casing is None:
            casing = looks_uncased(load_vocab(vocab_file))
            if found.tokenizer and not values.vocab_file:
                casing = found.tokenizer.do_lower_case
        if values.max_seq_length > found.config.max_position_embeddings:
            raise ValueError(
                f"--max_seq_length: the model has {found.config.max_position_embeddings} "
                f"positions, got {values.max_seq_length}"
            )
        folder = export_fill_mask(
            found.model,
            vocab_file,
            values.saved_model,
            do_lower_case=casing,
            max_seq_length=values.max_seq_length,
            top_k=values.top_k,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"export_model: {error}")
    size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    print(f"{found.transfer.description} exported to {folder} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
    flags.DEFINE_string("saved_model", None, "Folder of the SavedModel's versions.", required=True)
    flags.DEFINE_string("vocab_file", None, "Vocabulary; by default the model directory's.")
    flags.DEFINE_bool("do_lower_case", None, "Casing; by default the model directory's.")
    flags.DEFINE_integer("max_seq_length", 128, "Pieces of a sentence at most.", lower_bound=3)
    flags.DEFINE_integer("top_k", 5, "Candidates for each [MASK].", lower_bound=1)
    app.run(main)
