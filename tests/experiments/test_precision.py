"""--precision=auto of a command: what it says, and that a run keeps what it began with."""

import json

import pytest

from bert_tf.training.precision import Processor
from experiments.command_line import training_setup
from experiments.command_line.training_options import TrainingOptions


@pytest.fixture
def has_bfloat16(monkeypatch):
    def of(flags):
        processor = Processor("Some Processor 7", frozenset(flags))
        monkeypatch.setattr(training_setup, "this_processor", lambda: processor)

    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    return of


def chosen(folder, precision="auto", one_shape=True, **options):
    options = TrainingOptions(precision=precision, **options)
    options = training_setup.with_precision(options, folder, one_shape=one_shape)
    return options.precision, options.jit_compile


def test_it_says_what_it_chose_and_why(tmp_path, capsys, has_bfloat16):
    has_bfloat16(["avx512_bf16"])
    assert chosen(tmp_path) == ("mixed_bfloat16", "pointwise")
    assert capsys.readouterr().out == (
        "--precision=auto: --precision=mixed_bfloat16 --jit_compile=pointwise: Some Processor 7 "
        "has bfloat16 products (avx512_bf16)\n"
    )
    assert chosen(tmp_path, distribution_strategy="mirrored") == ("float32", "auto")
    assert "bfloat16 was measured on one CPU alone" in capsys.readouterr().out
    has_bfloat16([])
    assert chosen(tmp_path) == ("float32", "auto")
    assert "--precision=float32 --jit_compile=auto: Some Pro" in capsys.readouterr().out


@pytest.mark.parametrize("of_pretraining", [True, False])
def test_a_run_goes_on_as_it_began(tmp_path, capsys, has_bfloat16, of_pretraining):
    has_bfloat16([])
    begun = {"precision": "mixed_bfloat16", "jit_compile": "pointwise"}
    values = {"flags": begun} if of_pretraining else begun
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert chosen(tmp_path) == ("mixed_bfloat16", "pointwise")
    assert f"so the run in {tmp_path} began" in capsys.readouterr().out
    # On several devices the precision stays, and what is for one CPU does not.
    several = {"distribution_strategy": "mirrored"}
    assert chosen(tmp_path, **several) == ("mixed_bfloat16", "auto")
    assert chosen(tmp_path, jit_compile="false") == ("mixed_bfloat16", "false")


def test_a_precision_that_is_named_is_taken(tmp_path, capsys, has_bfloat16):
    has_bfloat16(["avx512_bf16"])
    assert chosen(tmp_path, "mixed_float16") == ("mixed_float16", "auto")
    assert chosen(tmp_path, "float32") == ("float32", "auto")
    assert not capsys.readouterr().out
