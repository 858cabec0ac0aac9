r"""Fine-tunes BERT to choose the right ending, as in SWAG, evaluates and predicts.

    python experiments/run_swag.py --data_dir=SWAG --do_train --do_eval --do_predict \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/swag

The folder holds train.csv, val.csv and test.csv; --train_file, --dev_file and --test_file name
other CSV files with the columns sent1, sent2, ending0, ending1, ... and, but for the test, label.
How many endings there are, the header says. Batch size, learning rate and epochs are the paper's
(section 4.4) where no flag gives them; other flags and defaults that run_classifier.py of
google-research/bert has are its own. The same command continues a run that was stopped.

In the output folder: the model (see experiments/py), curves.png; of --do_eval
eval_results.txt and .json; of --do_predict predictions.csv.
"""

from __future__ import annotations

import csv
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from bert_tf.tasks.table import (  # noqa: E402
    TASKS,
    TrainedTask,
)
from data_prep import create_finetuning_data  # noqa: E402
from experiments.command_line import training_flags  # noqa: E402
from experiments.command_line.exit_status import exit_on_error  # noqa: E402
from experiments.finetuning import flags as finetuning_flags  # noqa: E402
from experiments.finetuning.initial_model import (  # noqa: E402
    load_trained,
    starting_point,
)
from experiments.finetuning.results import (  # noqa: E402
    print_table,
    report_runs,
    with_step,
    write_results,
)
from experiments.finetuning.runs import (  # noqa: E402
    Job,
    train_all,
)
from experiments.finetuning.splits import (  # noqa: E402
    Data,
    Evaluator,
    leave_out,
    make_records,
    predict,
    probabilities_of,
)

FLAGS = flags.FLAGS
TASK = TASKS["swag"]


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    finetuning_flags.define_flags(
        values,
        max_seq_length=TASK.max_seq_length,
        train_batch_size=TASK.train_batch_size,
        learning_rate=TASK.learning_rates[0],
        num_train_epochs=TASK.num_train_epochs,
    )
    create_finetuning_data.define_file_flags(values)


def run(values: flags.FlagValues) -> None:
    """Train, evaluate and predict as the flags say.

    Raises:
        InputError, ValueError, OSError: bad flags, data or model; one line says what.
    """
    began = time.time()
    finetuning_flags.check_flags(values)
    folder = pathlib.Path(values.output_dir)
    start = starting_point(values)
    task, sources = create_finetuning_data.file_sources(values, TASK)
    print(f"{task.num_choices} choices")
    with training_flags.chief_first(values):
        data = make_records(task, sources, values, start)
    vocab_size = start.config.vocab_size
    evaluator = Evaluator(data, values, vocab_size) if values.do_eval else None
    if values.do_train:
        job = Job(
            task=TrainedTask(task.kind, values.max_seq_length, has_pairs=True),
            labels=None,
            records=data.records("train", vocab_size),
            num_examples=data.made["train"].num_examples,
            fingerprint=data.fingerprint,
            evaluate=evaluator,
            selection_metric=task.selection_metric,
            baseline=evaluator.baseline if evaluator else None,
        )
        print(f"begins with {start.description}")
        trained = train_all(job, start, values)
        report_runs(trained, folder, job.selection_metric, job.baseline)
        start = start.trained(folder)
    loaded = load_trained(values, start, task.kind)
    model, step = loaded.model, loaded.transfer.step
    if evaluator is not None:
        figures = evaluator(model)
        results = {f"eval_{name}": value for name, value in figures.items()}
        write_results(folder, with_step({**results, "loss": figures["loss"]}, step))
        print("evaluation:")
        rows = [(name, f"{value:.6g}") for name, value in results.items()]
        rows.append(("accuracy of a constant", f"{evaluator.baseline:.6g}"))
        print_table(rows)
    if values.do_predict:
        records = data.records("test", vocab_size)
        logits = predict(records, model, values, batch_size=values.predict_batch_size)
        print(f"wrote {write_predictions(data, logits, values)}")
    print(f"{folder}: {time.time() - began:.0f} s in all")


def write_predictions(data: Data, logits: np.ndarray, values: flags.FlagValues) -> pathlib.Path:
    """Write predictions.csv: of each example its id, the choice from 0, and all probabilities.

    Args:
        data: with a test split.
        logits: [N, C].
        values: flags.
    """
    path = pathlib.Path(values.output_dir) / "predictions.csv"
    probabilities = probabilities_of(data.task.kind, logits)
    examples = data.sources["test"].read(leave_out if values.skip_bad_examples else None, None)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        endings = (f"probability of ending{i}" for i in range(logits.shape[1]))
        writer.writerow(["id", "choice", *endings])
        for example, row in zip(examples, probabilities, strict=True):
            writer.writerow([example.guid, row.argmax(), *(f"{number:.6g}" for number in row)])
    return path


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("run_swag", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
