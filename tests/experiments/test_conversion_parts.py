"""Parts of converting, of comparing systems and of fill_mask, without a conversion."""

import dataclasses
import io
import json
import sys
import types

import keras
import numpy as np
import pytest
from absl import flags

from bert_tf.models.task_models import HEADS
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.load import LoadedModel, Transfer
from bert_tf.weights.locate import LocatedCheckpoint, locate
from bert_tf.weights.save import save_hf
from experiments import fill_mask
from experiments.command_line.exit_status import InputError
from experiments.conversion import convert, task_figures, verify
from experiments.conversion.options import ConversionOptions
from experiments.conversion.verify import Mismatch
from tests.support import command_options
from tests.support import synthetic_records as synthetic

CONFIG = synthetic.small_config(num_hidden_layers=1)


def loaded_of(kind="encoder", **changes):
    """Return a model as it is loaded, with the vocabulary of the synthetic records."""
    values = {
        "model": HEADS[kind].make(CONFIG),
        "config": CONFIG,
        "tokenizer": FullTokenizer.from_vocab(synthetic.VOCAB, True),
        "kind": kind,
        "labels": None,
        "transfer": Transfer("some weights", "transformers", (), (), ()),
    }
    return LoadedModel(**{**values, **changes})


# === What is printed, refused and written ===


@pytest.mark.parametrize(
    ("lower", "strip", "words"),
    [
        (True, None, "97 pieces, uncased"),
        (True, False, "97 pieces, uncased, accents kept"),
        (False, True, "97 pieces, cased, accents stripped"),
        (False, False, "97 pieces, cased"),
    ],
)
def test_casing_and_accents_are_told(capsys, lower, strip, words):
    tokenizer = FullTokenizer.from_vocab(synthetic.VOCAB, lower, strip_accents=strip)
    convert._print_contents(loaded_of(tokenizer=tokenizer), types.SimpleNamespace(state={}))
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert ["vocabulary", words] in lines


def test_files_beside_a_keras_file_are_not_replaced(tmp_path):
    source, target = tmp_path / "from", tmp_path / "to" / "m.keras"
    convert._check_target(str(source), target, "keras", False)
    target.parent.mkdir()
    (target.parent / "vocab.txt").write_text("x")
    message = f"--to: {tmp_path}/to/vocab.txt would be replaced; name a file in another folder, or"
    with pytest.raises(ValueError, match=message):
        convert._check_target(str(source), target, "keras", False)
    convert._check_target(str(source), target, "keras", True)


def test_what_a_model_is_for_without_a_place_or_a_head():
    assert convert._trained_task(loaded_of(), None) is None
    classifier = loaded_of(problem_type="regression")._replace(kind="classification")
    assert convert._trained_task(classifier, None) == TrainedTask("regression")
    assert convert._trained_task(loaded_of(problem_type="regression"), None) is None


def test_vectors_are_written_for_sentence_transformers(tmp_path):
    trained = TrainedTask("similarity", max_seq_length=13, pooling="max")
    options = command_options.of(
        ConversionOptions, **{"from": "x", "to": str(tmp_path), "format": "hf"}
    )
    convert._write(loaded_of(), tmp_path, options, trained)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == CONFIG.hidden_size
    assert pooling.get("pooling_mode_max_tokens", pooling.get("pooling_mode")) in (True, "max")
    convert._write(loaded_of(), tmp_path, options, None)  # is for nothing that is known
    assert not (tmp_path / "modules.json").exists() and not (tmp_path / "bert_task.json").exists()


# === Comparisons ===


def test_systems_that_cannot_be_asked(tmp_path, monkeypatch):
    save_hf(tmp_path, HEADS["encoder"].make(CONFIG), None)
    located = locate(tmp_path)

    def said(located, kind="encoder"):
        name, run = verify.own_system("transformers", located, kind, True)
        assert (run is None) == (name != "transformers")
        return name

    alone = "transformers (takes a directory with config.json)"
    other = dataclasses.replace(located, path=str(tmp_path / "other.safetensors"))
    assert said(other) == alone
    config_file = tmp_path / "config.json"
    values = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**values, "window_pooling": "max"}))
    assert said(located, "classification") == "transformers (reads one window of a text)"
    found = []
    monkeypatch.setattr(
        verify.importlib.util, "find_spec", lambda name: found.append(name) or name == "torch"
    )
    assert said(located) == "transformers (not installed)" and "transformers" in found
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: True)
    assert said(located) == "transformers"
    config_file.unlink()
    assert said(located) == alone
    assert (
        verify.own_system("x", located, "encoder", True)[0] == "x (does not run beside this pac"
        "kage)"
    )


def test_another_checkpoint_in_the_target_is_told(monkeypatch):
    place = LocatedCheckpoint("hf", "t/model.safetensors", "x", None, None)
    monkeypatch.setattr(verify, "locate", lambda target: place)
    message = "t holds another checkpoint, t/model.safetensors, which is read in place of t/m.ckpt"
    with pytest.raises(Mismatch, match=message):
        verify.verify(loaded_of(), place, "t", "t/m.ckpt", (), 1e-4, changed=True)


def test_a_tokenizer_that_is_not_berts_is_a_difference(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    row, equal = verify._compare_tokenizers("source", None, "x")
    assert row == ("tokenizer of the source in transformers", "none of BERT's here", "DIFFERS")
    assert not equal


def test_outputs_of_other_backends_are_arrays_too(monkeypatch):
    outputs = {"a": keras.ops.convert_to_tensor([1.0, 2.0])}
    monkeypatch.setattr(verify.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(verify.keras.ops, "convert_to_numpy", lambda value: ("numpy", value))
    assert verify._arrays(outputs) == {"a": ("numpy", outputs["a"])}
    assert verify._arrays(outputs["a"]) == {"logits": ("numpy", outputs["a"])}


# === Records of the task ===


def records_of(monkeypatch, **changes):
    values = {"kind": "classification", "max_windows": None, "label_names": ("no", "yes")}
    records = types.SimpleNamespace(**{**values, "max_seq_length": 13, **changes})
    opened = types.SimpleNamespace(open=lambda path, vocab_size: records)
    monkeypatch.setattr(task_figures, "TaskRecords", opened)
    return records


def served_of(task="classification", windows=None, labels=("no", "yes")):
    return types.SimpleNamespace(
        task=task, windows=windows, label_names=labels, config=CONFIG, thresholds=()
    )


def test_records_that_the_model_cannot_read(monkeypatch):
    records = records_of(monkeypatch)
    assert task_figures.open_records("dev", served_of()) is records
    for windows, of_records, message in (
        ("rule", None, "dev: holds texts of one sequence, which the model does not read"),
        (None, 3, "dev: holds texts in windows, which the model does not read"),
    ):
        records_of(monkeypatch, max_windows=of_records)
        with pytest.raises(InputError, match=message):
            task_figures.open_records("dev", served_of(windows=windows))
    records_of(monkeypatch, max_seq_length=42)
    with pytest.raises(InputError, match="dev: has records of 42 pieces, the model 41 positions"):
        task_figures.open_records("dev", served_of())
    records_of(monkeypatch, kind="retrieval", label_names=None)
    message = "dev: dev_file: needs labels, which records of retrieval lack"
    with pytest.raises(InputError, match=message):
        task_figures.TaskFigures("dev", served_of("embeddings", labels=()), 0.1)


# === fill_mask ===


def run_fill_mask(monkeypatch, *arguments, answers=None):
    values = flags.FlagValues()
    fill_mask.define_flags(values)
    left = values(["fill_mask", *arguments])
    with monkeypatch.context() as patched:
        patched.setattr(fill_mask, "flags", types.SimpleNamespace(FLAGS=values))
        patched.setattr(fill_mask, "answers_of_model", lambda path, sentences: answers)
        fill_mask.main(left)


ANSWERS = {
    "mask_count": np.array([2]),
    "tokens": np.array([[[b"caf\xc3\xa9", b"a"], [b"##s", b"b"], [b"", b""]]], object),
    "scores": np.array([[[0.5, 0.25], [0.75, 0.125], [0, 0]]]),
}


def test_answers_are_shown_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one [MASK] [MASK] two\n\n"))
    path = tmp_path / "answers.jsonl"
    run_fill_mask(monkeypatch, "--model_dir=m", f"--output_file={path}", answers=ANSWERS)
    assert capsys.readouterr().out.splitlines() == [
        "one [MASK] [MASK] two",
        "  one cafés two",
        "    café 0.500  a 0.250",
        "    ##s 0.750  b 0.125",
    ]
    assert path.read_text(encoding="utf-8") == (
        '{"text": "one [MASK] [MASK] two", "tokens": [["café", "a"], ["##s", "b"]], '
        '"scores": [[0.5, 0.25], [0.75, 0.125]]}\n'
    )


def test_what_fill_mask_refuses(tmp_path, monkeypatch):
    for arguments, message in (
        (["more"], "fill_mask: unexpected argument 'more': use --text"),
        (["--text=no mask", "--model_dir=m"], r"fill_mask: --text: expected \[MASK\] in 'no mask'"),
        (
            ["--text=a [MASK]", "--saved_model=gs://b/m"],
            "fill_mask: --saved_model: expected a folder on this machine, got 'gs://b/m'",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            run_fill_mask(monkeypatch, *arguments)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "saved_model.pb").write_bytes(b"")
    assert fill_mask.newest_version(str(tmp_path)) == tmp_path
    (tmp_path / "saved_model.pb").unlink()
    assert fill_mask.newest_version(str(tmp_path)) == tmp_path / "7"


def test_help_shows_the_command_as_it_was_typed(monkeypatch):
    for typed, name in (
        (["python", "experiments/fill_mask.py"], "python experiments/fill_mask.py"),
        (["python", "/x/bin/bert-tf", "fill_mask"], "bert-tf fill_mask"),
    ):
        monkeypatch.setattr(sys, "orig_argv", typed)
        shown = [line for line in fill_mask.help_text().splitlines() if line.startswith("    ")]
        assert sum(line.startswith(f"    {name} --") for line in shown) == 2
