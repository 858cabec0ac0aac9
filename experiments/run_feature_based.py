r"""Tags named entities with a BiLSTM over the features of a frozen BERT (the paper, section 5.3).

    python experiments/run_feature_based.py --model_dir=cased_L-12_H-768_A-12 \
        --train_file=eng.train --eval_file=eng.testa --test_file=eng.testb --document_context \
        --features=all_six --seeds=1,2,3,4,5 --output_dir=runs/feature_based

Files hold one word and its tag a line, as CoNLL-2003 has them. The encoder runs
once over each file; its hidden states are kept in --cache_dir as float16, under a digest of texts,
weights and settings. --features names one of the six choices of table 7, or all of them.

Training is Keras' `fit`: Adam at a constant rate, gradients clipped to the global norm 1, cross
entropy of the first pieces of words. The paper says neither, nor of dropout: --dropout_rate is of
the features, between the LSTM layers and before the classifier. After each epoch the eval file's
entities are scored, and the weights of the best epoch are kept.

Writes into --output_dir: feature_based.md and feature_based.json, the table and all figures;
<features>-seed-<seed>.keras, the taggers; labels.txt, the labels in the order of their logits.
"""

from __future__ import annotations

import logging as python_logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be looked up elsewhere

from absl import app, flags, logging

from experiments.command_line.exit_status import exit_on_error
from experiments.feature_based.flags import define_flags
from experiments.feature_based.taggers import run


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("bert_tf").setLevel(python_logging.WARNING)
    return exit_on_error("run_feature_based", lambda: run(values))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
