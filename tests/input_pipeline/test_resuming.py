"""Every input pipeline goes on from every step, to the bit, over the ends of several epochs."""

import pathlib

import pytest

from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.pretraining import pretraining_dataset
from experiments.pretraining.options import PretrainingOptions
from experiments.pretraining.plan import make_plan
from experiments.pretraining.run import training_dataset
from tests.input_pipeline import test_finetuning
from tests.support import command_options, pretraining_runs
from tests.support import synthetic_records as synthetic
from tests.support.resuming import check_resuming

STEPS, BATCH = 12, 5
TOKENS = {"batch_size": None, "batch_tokens": 97, "length_bins": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of small files: masked, compressed, unmasked and damaged ones."""
    folder = tmp_path_factory.mktemp("records")
    synthetic.write(folder / "a.tfrecord", 13, 1)
    synthetic.write(folder / "b.tfrecord.gz", 7, 2)
    for name, seed in (("u", 3), ("v", 4)):
        synthetic.write(folder / f"{name}.tfrecord", 11, seed, masked=False)
    damaged = bytearray(pathlib.Path(synthetic.write(folder / "d.tfrecord", 13, 5)).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "d.tfrecord").write_bytes(damaged)
    synthetic.write_vocabulary(folder / "vocab.txt")
    synthetic.small_config(num_hidden_layers=1).to_json_file(folder / "bert_config.json")
    return folder


def batches(names, **changes):
    """Return a function from a step to the batches of `pretraining_dataset` from it on."""
    settings = {
        "batch_size": BATCH,
        "max_seq_length": synthetic.LENGTH,
        "max_predictions_per_seq": synthetic.PREDICTIONS,
        "is_training": True,
        "seed": 7,
        **changes,
    }
    return lambda folder: (
        lambda step: pretraining_dataset(
            [str(folder / name) for name in names], start_step=step, **settings
        )
    )


def command(**flags):
    """Return a function from a step to the batches of run_pretraining.py from it on."""

    def of_folder(folder):
        given = {
            "input_file": folder / "a.tfrecord",
            "eval_input_file": folder / "a.tfrecord",
            "train_batch_size": BATCH,
            "num_train_steps": STEPS + 1,
            "num_warmup_steps": 0,
        }
        given |= {
            name: folder / value if name.endswith("input_file") else value
            for name, value in flags.items()
        }
        options = command_options.parse(
            PretrainingOptions, pretraining_runs.arguments(folder, folder / "out", **given)
        )
        plan = make_plan(options)
        phase = plan.phases[-1]
        return lambda step: training_dataset(options, plan, phase, phase.begin + step)

    return of_folder


def task(kind, **settings):
    """Return a function from a step to the training batches of `TaskRecords` from it on."""

    def of_folder(folder):
        records, _ = test_finetuning.make_records(folder, kind, count=23)
        return lambda step: records.training_dataset(
            batch_size=BATCH, seed=7, start_step=step, **settings
        )

    return of_folder


PIPELINES = {
    "masked": batches(["a.tfrecord"]),
    "gzip": batches(["a.tfrecord", "b.tfrecord.gz"]),
    "dynamic": batches(["u.tfrecord", "v.tfrecord"], masking=MaskingRule(synthetic.VOCAB)),
    "dynamic_whole_words": batches(
        ["u.tfrecord"], masking=MaskingRule(synthetic.VOCAB, whole_word=True)
    ),
    "causal": batches(["u.tfrecord"], masking=NextPieceRule(), next_sentence=False),
    "small_buffer": batches(["a.tfrecord", "b.tfrecord.gz"], shuffle_buffer_records=3),
    "length_bins": batches(["a.tfrecord", "b.tfrecord.gz"], length_bins=4),
    "length_bins_dynamic": batches(
        ["u.tfrecord"], masking=MaskingRule(synthetic.VOCAB), length_bins=3
    ),
    "length_bins_small_pools": batches(
        ["a.tfrecord", "b.tfrecord.gz"], length_bins=4, shuffle_buffer_records=2 * BATCH
    ),
    "tokens": batches(["a.tfrecord", "b.tfrecord.gz"], **TOKENS),
    "tokens_dynamic": batches(
        ["u.tfrecord", "v.tfrecord"],
        masking=MaskingRule(synthetic.VOCAB),
        **{**TOKENS, "length_bins": 7, "batch_multiple": 2},
        shuffle_buffer_records=3,
    ),
    "tokens_causal": batches(["u.tfrecord"], masking=NextPieceRule(), **TOKENS),
    "packed": batches(["a.tfrecord", "b.tfrecord.gz"], batch_size=2, sequences_per_row=3),
    "packed_dynamic": batches(
        ["u.tfrecord", "v.tfrecord"],
        batch_size=2,
        sequences_per_row=3,
        masking=MaskingRule(synthetic.VOCAB),
        shuffle_buffer_records=3,
    ),
    "packed_command": command(pack_sequences=True, train_batch_size=3),
    "tokens_command": command(
        train_batch_size=None,
        train_batch_tokens=67,
        second_input_file="b.tfrecord.gz",
        second_max_seq_length=synthetic.LENGTH,
        second_max_predictions_per_seq=synthetic.PREDICTIONS,
        second_phase_steps=STEPS,
    ),
    "evaluation": batches(
        ["u.tfrecord", "v.tfrecord"],
        masking=MaskingRule(synthetic.VOCAB),
        is_training=False,
        batch_size=2,
    ),
    "corrupt_skipping": command(input_file="d.tfrecord", skip_corrupt_records=True),
    "second_phase": command(
        second_input_file="b.tfrecord.gz",
        second_max_seq_length=synthetic.LENGTH,
        second_max_predictions_per_seq=synthetic.PREDICTIONS,
        second_train_batch_size=3,
        second_phase_steps=STEPS,
    ),
    "task_records": task("classification"),
    "task_records_ungrouped": task("regression", group_by_length=False, pad_to_max=True),
    "task_records_of_choices": task("multiple_choice"),
    "task_records_of_spans": task("span", with_mask=True),
}


# Of packed rows the one with dynamic masks goes the ways of all.
_SLOW = ("packed", "packed_command")
_THOROUGH = (
    "causal",
    "corrupt_skipping",
    "dynamic_whole_words",
    "evaluation",
    "gzip",
    "length_bins_dynamic",
    "length_bins_small_pools",
    "packed_dynamic",
    "second_phase",
    "small_buffer",
    "tokens_causal",
    "tokens_command",
    "tokens_dynamic",
)


@pytest.mark.parametrize(
    "pipeline",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow] * (name in _SLOW)
            + [pytest.mark.thorough] * (name in _THOROUGH),
        )
        for name in PIPELINES
    ],
)
def test_a_pipeline_goes_on_from_every_step_to_the_bit(pipeline, folder):
    steps = 11 if pipeline == "evaluation" else STEPS
    check_resuming(PIPELINES[pipeline](folder), steps)
