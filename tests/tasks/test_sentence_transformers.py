"""The files of sentence-transformers that say how vectors are made."""

import json

import pytest

from bert_tf.tasks.sentence_transformers import (
    read_sentence_transformers,
    write_sentence_transformers,
)
from bert_tf.tasks.trained_task import POOLINGS, TrainedTask, read_trained_task

MODES = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}


def write(folder, types, pooling, **settings):
    """Write the files as sentence-transformers 5 and 6 do."""
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(zip(paths, types, strict=False))
    ]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, values in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(values))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_written_is_read(tmp_path, pooling, normalize):
    trained = TrainedTask("similarity", max_seq_length=67, pooling=pooling, normalize=normalize)
    write_sentence_transformers(tmp_path, trained, 22)
    assert read_sentence_transformers(tmp_path) == trained
    settings = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    modes = {name for name, value in settings.items() if value is True}
    assert modes == {f"pooling_mode_{MODES[pooling]}", "include_prompt"}
    assert settings["word_embedding_dimension"] == 22
    assert (tmp_path / "2_Normalize").is_dir() == normalize


def test_what_others_write_is_read(tmp_path):
    types = ("Transformer", "Pooling", "Normalize")
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write(tmp_path / "a", types, old, sentence_bert_config={"max_seq_length": 256})
    expected = TrainedTask("similarity", max_seq_length=256, pooling="cls", normalize=True)
    assert read_sentence_transformers(tmp_path / "a") == expected
    new = {"embedding_dimension": 22, "pooling_mode": "max", "include_prompt": True}
    write(tmp_path / "b", types[:2], new, tokenizer_config={"model_max_length": 67})
    expected = TrainedTask("similarity", max_seq_length=67, pooling="max")
    assert read_sentence_transformers(tmp_path / "b") == expected
    write(tmp_path / "c", types[:2], new, tokenizer_config={"model_max_length": 10**30})
    found = read_sentence_transformers(tmp_path / "c")
    assert found is not None and found.max_seq_length == 512
    assert read_sentence_transformers(tmp_path) is None


def test_an_encoder_in_a_folder_of_its_own(tmp_path):
    write(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "0_Transformer").mkdir()
    settings = {"max_seq_length": 31}
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps(settings))
    found = read_sentence_transformers(tmp_path / "0_Transformer")
    assert found == TrainedTask("similarity", max_seq_length=31, pooling="mean")
    (tmp_path / "other").mkdir()
    assert read_sentence_transformers(tmp_path / "other") is None


@pytest.mark.parametrize("text", ["{", '{"name": "a web page"}', "[]", '[{"path": ""}]', "[1]"])
def test_a_file_above_a_model_that_is_not_its_own_is_passed_over(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    (tmp_path / "model").mkdir()
    assert read_sentence_transformers(tmp_path / "model") is None


@pytest.mark.parametrize("path", ["../1_Pooling", "{}/1_Pooling", "a/../../1_Pooling"])
def test_a_pooling_out_of_the_folder_is_refused(tmp_path, path):
    write(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "max"})  # which is there
    write(tmp_path / "model", ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    modules[1]["path"] = path.format(tmp_path)
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"modules\.json: module 1: expected a path within the"):
        read_sentence_transformers(tmp_path / "model")


def test_a_pooling_that_is_missing_is_named(tmp_path):
    write(tmp_path, ("Transformer", "Pooling"), {})
    (tmp_path / "1_Pooling" / "config.json").unlink()
    message = r"modules\.json: module 1: there is no .*1_Pooling/config\.json"
    with pytest.raises(ValueError, match=message):
        read_sentence_transformers(tmp_path)


PROMPTS = {"query": "query: ", "document": ""}
OTHER_WAYS = [
    (
        {"config_sentence_transformers": {"prompts": PROMPTS, "default_prompt_name": "query"}},
        {},
        "the prompt 'query: ' stands before each text",
    ),
    ({}, {"include_prompt": False}, "a prompt before a text is left out of the pooling"),
    (
        {
            "sentence_bert_config": {"do_lower_case": True},
            "tokenizer_config": {"do_lower_case": False},
        },
        {},
        "texts become lower case before the tokenizer",
    ),
]


@pytest.mark.parametrize(("settings", "pooling", "reason"), OTHER_WAYS)
def test_settings_that_change_texts_are_told(tmp_path, caplog, settings, pooling, reason):
    write(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean", **pooling}, **settings)
    assert read_sentence_transformers(tmp_path) is None
    assert f"not known here ({reason})" in caplog.text


def test_settings_that_change_no_vector(tmp_path, caplog):
    settings = {
        "config_sentence_transformers": {"prompts": {"query": ""}, "default_prompt_name": "query"},
        "sentence_bert_config": {"do_lower_case": True},
        "tokenizer_config": {"do_lower_case": True},
    }
    write(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"}, **settings)
    assert read_sentence_transformers(tmp_path) == TrainedTask(
        "similarity", max_seq_length=512, pooling="mean"
    )
    assert not caplog.text
    # Prompts that the library puts before a text only when it is asked to.
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    assert read_sentence_transformers(tmp_path) is not None
    assert "has prompts, query 'query: ', which nothing here puts before a text" in caplog.text


@pytest.mark.parametrize(
    ("types", "pooling"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode": "mean"}),
        (("Transformer", "Pooling"), {"pooling_mode": ["mean", "cls"]}),
        (("Transformer", "Pooling"), {"pooling_mode": "lasttoken"}),
        (("Transformer", "Pooling"), {"pooling_mode_weightedmean_tokens": True}),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        ),
        (("CLIPModel",), {}),
    ],
)
def test_vectors_that_are_made_in_another_way_are_told(tmp_path, caplog, types, pooling):
    write(tmp_path, types, pooling)
    assert read_sentence_transformers(tmp_path) is None
    assert f"not known here ({', '.join(types)})" in caplog.text


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_damaged_files(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ValueError):
        read_sentence_transformers(tmp_path)


def test_what_a_model_is_trained_for(tmp_path):
    trained = TrainedTask("retrieval", pooling="max", normalize=True)
    trained.write(tmp_path)
    assert read_trained_task(tmp_path) == trained
    TrainedTask("classification").write(tmp_path)
    assert (
        not {"pooling", "normalize"} & json.loads((tmp_path / "bert_task.json").read_text()).keys()
    )
    with pytest.raises(
        ValueError, match="pooling must be one of mean, cls, max or null, got 'sum'"
    ):
        TrainedTask("retrieval", pooling="sum")
    with pytest.raises(ValueError, match="trained: a model for span has no pooling"):
        write_sentence_transformers(tmp_path, TrainedTask("span"), 22)
