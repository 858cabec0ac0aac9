r"""Tags named entities with a BiLSTM over the features of a frozen BERT (the paper, section 5.3).

    python experiments/run_feature_based.py --model_dir=cased_L-12_H-768_A-12 \
        --train_file=eng.train --dev_file=eng.testa --test_file=eng.testb --document_context \
        --features=all_six --seeds=1,2,3,4,5 --output_dir=runs/feature_based

    python experiments/run_feature_based.py --model_dir=cased_L-12_H-768_A-12 \
        --train_file=train.conll --dev_file=dev.conll --features=concat_last_four \
        --num_train_epochs=10 --learning_rate=1e-3 --output_dir=runs/features

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

from experiments.command_line.command import run_command
from experiments.feature_based.options import TaggerOptions

if __name__ == "__main__":
    run_command(TaggerOptions, "experiments.feature_based.taggers", "warning")
