r"""Fine-tunes BERT to tag words, such as the names in a text, evaluates as conlleval and predicts.

    python experiments/run_ner.py --train_file=train.conll --dev_file=dev.conll \
        --test_file=test.conll --do_train --do_eval --do_predict --document_context \
        --train_batch_size=32 --learning_rate=5e-5 --num_train_epochs=3 --seeds=1,2,3 \
        --model_dir=cased_L-12_H-768_A-12 --output_dir=runs/ner

    python experiments/run_ner.py --test_file=words.conll --do_predict --output_dir=runs/ner

Files hold a word and its tag in each line and blank lines between sentences, as CoNLL-2003's; of
other columns --token_column and --tag_column say which count. The labels are the tags of the
training file. --document_context shows the model the words around a sentence, as the paper did;
--tag_scheme=bio rewrites IOB1 and IOBES. Flags and defaults that run_classifier.py of
google-research/bert has are its own. The same command continues a run that was stopped.

In the output folder: the model (a model directory with bert_task.json), curves.png; of --do_eval
eval_results.txt and .json, ner_report.txt as conlleval prints it, ner_types.png,
predictions_dev.conll (word, true tag, predicted tag); of --do_predict predictions_test.conll, and
if the test file has tags test_results.txt and .json, ner_report_test.txt, ner_types_test.png.
All figures are in percent.
"""

from experiments.command_line.command import run_command
from experiments.finetuning.options import TaggingOptions, defaults_of

DEFAULTS = defaults_of("ner")

if __name__ == "__main__":
    run_command(TaggingOptions, "experiments.finetuning.tagging", **DEFAULTS)
