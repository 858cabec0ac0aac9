"""Sizes of one's own: what a file says is what is run, and what it cannot say is told."""

import dataclasses
import json

import pytest

from experiments.paper_tables import recipes, report, tables
from experiments.paper_tables.grid import GridError
from experiments.paper_tables.scale import read_scale
from tests.experiments.test_paper import places


def read(tmp_path, **given):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(given))
    return read_scale(str(path))


@pytest.mark.parametrize("name", recipes.SCALES)
def test_a_name_is_the_scale_itself(name):
    assert read_scale(name) is recipes.SCALES[name]


def test_what_a_file_does_not_say_stays(tmp_path):
    found = read(
        tmp_path,
        seeds=[7],
        pretraining={"steps": 50, "learning_rate": 1, "config": {"hidden_size": 48}},
        recipes={"mnli": {"learning_rates": [3e-5], "steps": 9}, "ner": {"max_seq_length": 64}},
        vocab_size=None,
    )
    full = recipes.FULL
    assert found.seeds == (7,) and found.sizes == full.sizes and found.own_recipes is None
    expected = dataclasses.replace(
        full.pretraining, steps=50, learning_rate=1.0, config={"hidden_size": 48}
    )
    assert found.pretraining == expected
    recipe = dataclasses.replace(full.recipes[""], learning_rates=(3e-5,), epochs=None, steps=9)
    assert found.recipe("mnli") == recipe and found.recipe("qqp") == full.recipes[""]
    assert found.recipe("ner") == dataclasses.replace(full.recipes["ner"], max_seq_length=64)
    small = read(tmp_path, scale="small", pretraining={"config": {"initializer_range": 0.1}})
    assert small.pretraining.config["initializer_range"] == 0.1
    assert small.pretraining.config["hidden_size"] == 128
    own = read(tmp_path, own_recipes={"": {"epochs": 1}})
    assert own.recipe("qqp", own=True).epochs == 1 and own.recipe("qqp").epochs == 3


def test_own_sizes_are_run_and_stand_beside_the_papers_of_the_same_size(tmp_path):
    sizes = [[2, 64, 1], [12, 768, 12]]
    scale = read(tmp_path, scale="small", sizes=sizes, seeds=[3], words="two of them")
    table = tables.make_table(6, scale, places(tmp_path), tmp_path / "runs")
    assert [row.label for row in table.rows] == ["L2-H64-A1", "L12-H768-A12"]
    papers = [[cell.paper for cell in row.cells] for row in table.rows]
    assert papers == [[None] * 4, [3.99, 84.4, 86.7, 92.9]]
    seeds = {name for run in table.runs for name, value in run.flags if name == "seeds"}
    assert seeds == {"seeds"} and len(table.runs) == 3 + 2 * (1 + 3)
    text, _ = report.write_report(table, scale, tmp_path / "runs", {}, command=["x.py"])
    assert text.read_text().startswith("# Table 6: Model size, dev (mine.json scale: two of them)")


def test_seeds_of_pretraining_have_a_model_each(tmp_path):
    """A row's figures are those of all its models, and each is fine-tuned with every seed."""
    scale = read(tmp_path, scale="small", seeds=[1, 2, 3], pretraining={"seeds": [5, 6]})
    table = tables.make_table(8, scale, places(tmp_path), tmp_path / "runs")
    models = [run for run in table.runs if run.name.endswith("/pretraining")]
    assert [dict(run.flags)["seed"] for run in models] == 6 * [5, 6]
    mnli, _, features = table.rows[0].cells
    ((_, names),) = mnli.choices
    folders = [f"pretrained/L2-H128-A2/seed{seed}" for seed in (5, 6)]
    assert [name.rpartition("/")[0] for name in names] == 3 * [folders[0]] + 3 * [folders[1]]
    assert [name.rpartition("/")[0] for name in features.choices[0][1]] == folders
    assert table.curves[0] == ("80/10/10", tuple(f"{folder}/pretraining" for folder in folders))


def test_masks_are_drawn_as_the_recipe_says(tmp_path):
    """Held-out text shows 15% in any case; left to right takes the same records, if unmasked."""
    given, runs = places(tmp_path), {}
    for dynamic in (True, False):
        recipe = {"dynamic_masking": dynamic, "masked_lm_prob": 0.25, "length": 100}
        scale = read(tmp_path, scale="small", pretraining=recipe)
        table = tables.make_table(5, scale, given, tmp_path / f"runs{dynamic}")
        runs[dynamic] = {run.name: dict(run.flags) for run in table.runs}
    train, heldout = (runs[True][f"data/masked-100-{x}.tfrecord"] for x in ("train", "heldout"))
    assert train["masked_lm_prob"] == 0.25 and "masked_lm_prob" not in heldout
    assert train["dynamic_masking"] is heldout["dynamic_masking"] is True
    assert train["max_predictions_per_seq"] == heldout["max_predictions_per_seq"] == 25
    assert not any("next-" in name for name in runs[True])
    model = "pretrained/L2-H128-A2{}/seed12345/pretraining"
    assert runs[True][model.format("")]["next_sentence_weight"] == 0.1
    assert "next_sentence_weight" not in runs[True][model.format("-no_nsp")]
    assert "dynamic_masking" not in runs[False]["data/masked-100-train.tfrecord"]
    assert runs[False]["data/next-100-train.tfrecord"]["dynamic_masking"] is True


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scale": "tiny"}, r"mine\.json: scale: expected one of full, small, got 'tiny'"),
        ({"steps": 5}, r"mine\.json: unknown 'steps'; known are name, words, seeds"),
        ({"name": "x"}, "name: is that of the file"),
        ({"seeds": []}, r"seeds: expected at least one value, got \[\]"),
        ({"seeds": 1}, "seeds: expected a list, got 1"),
        ({"seeds": [1, "2"]}, r"seeds\[1\]: expected an integer of at least 0, got '2'"),
        ({"sizes": [[2, 64]]}, r"sizes\[0\]: expected 3 values, got"),
        ({"pretraining": {"steps": -1}}, "pretraining: steps: expected an integer of at least 0"),
        ({"pretraining": {"step": 1}}, "pretraining: unknown 'step'"),
        ({"pretraining": 3}, "pretraining: expected an object, got 3"),
        ({"recipes": {"mmli": {}}}, "recipes: unknown 'mmli'; known are mnli, qqp"),
        ({"recipes": {"mnli": {"learning_rates": [True]}}}, r"learning_rates\[0\]: expected a num"),
        ({"recipes": {"mnli": {"learning_rates": [10**400]}}}, r"\[0\]: expected a number of at"),
        ({"recipes": {"": {"bias_correction": 1}}}, "'': bias_correction: expected true or false"),
        (
            {"pretraining": {"config": {"hidden_size": 100}}},
            r"mine\.json: pretraining: config: hidden_size must be a multiple",
        ),
        ({"pretraining": {"config": {"layers": 2}}}, "pretraining: config: .*'layers'"),
        ({"scale": []}, r"scale: expected one of full, small, got \[\]"),
        ({"seeds": [1, 1]}, r"seeds: expected distinct ones, got \[1, 1\]"),
        ({"pretraining": {"seeds": [2, 2]}}, r"pretraining: seeds: expected distinct ones, got"),
        ({"pretraining": {"masked_lm_prob": 15}}, "masked_lm_prob: expected a share .* got 15"),
        ({"pretraining": {"masked_lm_prob": 0}}, "masked_lm_prob: expected a share .* got 0"),
        ({"recipes": 3}, "recipes: expected an object, got 3"),
        ({"words": 3}, "words: expected a text, got 3"),
    ],
)
def test_what_a_scale_has_not_is_told(tmp_path, given, words):
    with pytest.raises(GridError, match=words):
        read(tmp_path, **given)


def test_files_that_are_none(tmp_path):
    with pytest.raises(GridError, match="--scale: expected full, small or a JSON file, got 'ful'"):
        read_scale("ful")
    path = tmp_path / "x.json"
    for text, words in (("{", r"x\.json: not JSON"), ("[]", "expected an object, got list")):
        path.write_text(text)
        with pytest.raises(GridError, match=words):
            read_scale(str(path))
