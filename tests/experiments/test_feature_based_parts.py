"""Parts of feature-based tagging and of extraction without a run."""

import contextlib
import dataclasses
import types
import zipfile

import numpy as np
import pytest
import scipy.special

from bert_tf.models.feature_extraction import TokenWindow
from experiments.feature_based import extraction, taggers
from experiments.feature_based.options import TaggerOptions
from tests.support import command_options


def options_of(tmp_path, **given):
    for name in ("train", "dev"):
        (tmp_path / name).write_text("w1 O\nw2 B-LOC\n\n")
    values = {"train_file": tmp_path / "train", "dev_file": tmp_path / "dev", "model_dir": "m"}
    return command_options.of(TaggerOptions, output_dir=tmp_path / "out", **{**values, **given})


def test_the_weights_of_summed_states_are_told(tmp_path):
    options = options_of(tmp_path, lstm_size=2)
    tagger = taggers.make_tagger(options, "weighted_sum_last_four", ["O", "B-LOC"], 3, 5)
    assert tagger.mix() == {"2": 0.25, "3": 0.25, "4": 0.25, "5": 0.25}
    weights = np.array([0.5, 1, -1, 2])
    tagger.model.get_layer("scalar_mix").mix_weights.assign(weights)
    expected = dict(zip("2345", scipy.special.softmax(weights).round(4), strict=True))
    assert tagger.mix() == pytest.approx(expected, abs=1e-4)


FIGURES = {"hidden_states": [5], "eval_f1": 0.0, "eval_f1_std": 0.0, "seeds": {"3": {"eval_f1": 0}}}


def test_taggers_that_tag_nothing_are_told_with_a_remedy(tmp_path, monkeypatch, capsys):
    frozen = types.SimpleNamespace(
        config=types.SimpleNamespace(num_hidden_layers=5, max_position_embeddings=512)
    )
    monkeypatch.setattr(taggers, "load_model", lambda options: frozen)
    monkeypatch.setattr(taggers, "_with_features", lambda *_: None)
    for f1, is_told in ((0.0, True), (70.0, False)):
        figures = {**FIGURES, "eval_f1": f1, "seeds": {"3": {"eval_f1": f1}}}
        monkeypatch.setattr(taggers, "_train_choice", lambda *_, x=figures: (x, ["a report"]))
        assert taggers.run(options_of(tmp_path, features="last")) == {"last": figures}
        printed = capsys.readouterr().out
        said = "failed: last, seed 3: eval F1 0 is not above that of a constant answer\n"
        assert (said in printed) == is_told
        remedy = "what may help: more --num_train_epochs, another --learning_rate\n"
        assert (remedy in printed) == is_told
        assert f"| Last Hidden | 5 | {f1:.2f} ± 0.00 |" in printed and "a report" in printed


def test_a_choice_without_a_figure_of_the_test_file_has_no_cell():
    with_test = {**FIGURES, "test_f1": 61.5, "test_f1_std": 1.25}
    lines = taggers.table({"last": with_test, "embeddings": FIGURES}).splitlines()
    assert lines[0].endswith("| dev F1 | test F1 |")
    assert lines[2].endswith("| 0.00 ± 0.00 | 61.50 ± 1.25 |")
    assert lines[3].endswith("| 5 | 0.00 ± 0.00 |")


def test_a_file_that_changes_while_it_is_read_leaves_nothing(tmp_path):
    path, shape = tmp_path / "x.npz", (3, 1, 2)
    windows = [TokenWindow((1, 2)), TokenWindow((3,))]
    for count in (1, 2):
        with contextlib.ExitStack() as stack:
            if count == 1:
                message = "x.npz: the input file has changed while it was read; run it again"
                stack.enter_context(pytest.raises(ValueError, match=message))
            write = stack.enter_context(
                extraction.npz_writer(str(path), [-1], shape, "float32", False)
            )
            for index, window in enumerate(windows[:count]):
                write(index, window, np.ones((len(window.input_ids), 1, 2), np.float32))
        assert path.exists() == (count == 2) and len(list(tmp_path.iterdir())) == count - 1
    assert zipfile.is_zipfile(path)
    with np.load(path) as arrays:
        assert arrays["values"].shape == shape and arrays["offsets"].tolist() == [0, 2, 3]


def test_files_must_be_there_before_anything_is_imported(tmp_path):
    options = options_of(tmp_path, test_file=None)
    assert options.test_file is None
    with pytest.raises(OSError, match="none"):
        dataclasses.replace(options, test_file=str(tmp_path / "none"))
