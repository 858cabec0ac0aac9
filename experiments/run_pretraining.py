r"""Pre-trains BERT on records of create_pretraining_data, and evaluates it.

    python experiments/run_pretraining.py --input_file='records/train-*.tfrecord' \
        --eval_input_file='records/dev-*.tfrecord' --model_size=mini --vocab_file=vocab.txt \
        --do_train --do_eval --output_dir=runs/mini \
        --num_train_steps=10000 --num_warmup_steps=1000 --learning_rate=1e-4

    python experiments/run_pretraining.py --input_file='records/train-*.tfrecord' \
        --model_size=base --init_checkpoint=uncased_L-12_H-768_A-12 --vocab_file=vocab.txt \
        --do_train --train_batch_size=256 --learning_rate=5e-5 --distribution_strategy=mirrored \
        --precision=mixed_bfloat16 --output_dir=runs/adapted

Flags and defaults are those of google-research/bert's run_pretraining.py wherever it has the flag.
With --second_input_file the last tenth of the steps takes longer sequences, as in the paper.
The same command continues a run that was stopped, to the bit. The output folder is a model
directory (bert_config.json, vocab.txt, bert_model.ckpt.*) and holds metrics.jsonl, config.json,
curves.png, eval_results.txt and checkpoints: the last and, with --eval_every_steps, the best one.
"""

from experiments.command_line.command import run_command
from experiments.pretraining.options import PretrainingOptions

if __name__ == "__main__":
    run_command(PretrainingOptions, "experiments.pretraining.run")
