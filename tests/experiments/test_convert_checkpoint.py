"""The conversion script: what it prints, writes and refuses, and that it notices a difference."""

import json
import pathlib

import numpy as np
import pytest

from bert_tf.config import BertConfig
from bert_tf.models.task_models import HEADS, bert_classifier
from bert_tf.serving.predictor import Predictor
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.weights.load import load_bert, load_model
from bert_tf.weights.save import save_hf, save_model_directory
from experiments.conversion import convert as conversion
from experiments.conversion import verify
from experiments.conversion.options import ConversionOptions
from experiments.conversion.verify import Mismatch, fixed_batch, our_outputs
from tests.support import command_options, warm_commands
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TF1 = GOLDEN / "model_garden" / "v2_pretrainer" / "bert_model.ckpt-1"

# transformers and torch, where installed, warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def convert(source, target, file_format, **changes):
    given = {"from": source, "to": target, "format": file_format, **changes}
    conversion.run(command_options.of(ConversionOptions, **given))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return a model directory with a vocabulary and labels."""
    folder = tmp_path_factory.mktemp("classifier")
    vocab = synthetic.write_vocabulary(folder / "words.txt")
    model = bert_classifier(synthetic.small_config(), 3)
    rng = np.random.default_rng(7)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    save_model_directory(folder / "tf1", model, vocab, ("no", "yes", "may be"))
    return folder / "tf1"


def test_around_all_formats_to_the_same_bytes(classifier, tmp_path, capsys):
    convert(classifier, tmp_path / "hf", "hf")
    printed = capsys.readouterr().out
    assert "in the layout of google-research/bert" in printed
    assert "classification" in printed and "no, yes, may be" in printed
    assert "41 weights equal to the bit" in printed and "DIFFERS" not in printed
    # One line stands for both layers, and only names that differ are shown twice.
    assert " bert/encoder/layer_*/attention/self/query/kernel" in printed and " x 2" in printed
    assert "layer_0" not in printed
    assert "classifier/output_weights" in printed
    convert(tmp_path / "hf", tmp_path / "m.keras", "keras", all_weights=True)
    printed = capsys.readouterr().out
    assert "bert.encoder.layer.1.attention.self.query.weight" in printed
    assert "37x22 -> 22x37" in printed
    convert(tmp_path / "m.keras", tmp_path / "h5" / "m.weights.h5", "keras")
    convert(tmp_path / "h5", tmp_path / "tf1", "tf1")
    names = sorted(path.name for path in classifier.iterdir())
    assert sorted(path.name for path in (tmp_path / "tf1").iterdir()) == names
    for name in names:
        assert (tmp_path / "tf1" / name).read_bytes() == (classifier / name).read_bytes(), name


def test_half_precision(classifier, tmp_path, capsys):
    convert(classifier, tmp_path / "half", "hf", weights="float16")
    printed = capsys.readouterr().out
    assert "weights rounded to float16" in printed and "outputs  logits " in printed
    assert "41 weights equal to the bit" in printed and "DIFFERS" not in printed
    for weight in load_model(tmp_path / "half").model.weights:
        value = weight.numpy()
        np.testing.assert_array_equal(value, value.astype(np.float16), err_msg=weight.path)
    with pytest.raises(ValueError, match="weights: float16 is for --format=hf, got tf1"):
        convert(classifier, tmp_path / "tf1", "tf1", weights="float16")


def test_what_has_no_place_in_the_target_is_listed(tmp_path, capsys):
    convert(TF1, tmp_path / "hub", "keras_hub")
    printed = capsys.readouterr().out
    assert "in the layout of TF Model Garden" in printed
    assert "the target has no place for: 7" in printed and "cls/predictions/output_bias" in printed
    assert "target in KerasHub" in printed and "DIFFERS" not in printed
    assert "39 weights equal to the bit" in printed
    again = load_bert(tmp_path / "hub")
    expected = load_bert(TF1)
    for ours, theirs in zip(again.encoder.weights, expected.encoder.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_missing_and_ignored_weights_are_listed(classifier, tmp_path, capsys):
    convert(
        classifier,
        tmp_path / "pretrainer",
        "tf1",
        kind="pretraining",
        allow_missing="^cls/",
        ignore=["^output_", "^nothing{1,2}$"],
    )
    printed = capsys.readouterr().out
    assert "missing in the source, at their initial values: 5" in printed
    assert "ignored in the source: 2" in printed and "output_bias" in printed


def test_positions_are_extended_on_request(classifier, tmp_path, capsys):
    convert(classifier, tmp_path / "long", "tf1", max_position_embeddings=601)
    assert "max_position_embeddings       601" in capsys.readouterr().out
    assert load_bert(tmp_path / "long").config.max_position_embeddings == 601


def test_a_difference_is_noticed(classifier, tmp_path, monkeypatch, capsys):
    write = save_hf

    def write_another(directory, model, tokenizer, labels, problem_type, dtype):
        other = bert_classifier(synthetic.small_config(), 3)
        other.set_weights(model.get_weights())
        weight = next(w for w in other.weights if w.path.endswith("layer_1/output/dense/bias"))
        weight.assign(weight.numpy() + 1e-3)
        return write(directory, other, tokenizer, labels)

    monkeypatch.setattr(conversion, "save_hf", write_another)
    with pytest.raises(Mismatch, match="differ by more than 0.0001"):
        convert(classifier, tmp_path / "hf", "hf")
    printed = capsys.readouterr().out
    assert "40 weights equal to the bit, 1 not: bert/encoder/layer_1/output/dense/bias" in printed
    convert(classifier, tmp_path / "unverified", "hf", verify=False)


def test_outputs_are_compared_by_name_shape_and_value():
    a = {"x": np.zeros((2, 3)), "y": np.ones(5)}
    compare = verify.compare
    assert compare("w", a, a, 0.0)[1]
    assert not compare("w", a, {"z": a["x"]}, 1.0)[1]
    assert not compare("w", a, {"x": np.zeros((3, 2))}, 1.0)[1]
    assert not compare("w", a, {"x": np.full((2, 3), np.nan)}, 1.0)[1]
    row, equal = compare("w", a, {"x": a["x"] + 0.5}, 0.4)
    assert not equal and row[1] == "x 5.0e-01"
    assert compare("w", a, {"x": a["x"] + 0.5}, 0.6)[1]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"max_position_embeddings": 5, "type_vocab_size": 1}, {"window_pooling": "max"}],
)
def test_the_fixed_batch_fits_every_model(kind, changes):
    config = BertConfig(
        vocab_size=13,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=7,
        **changes,
    )
    head = HEADS[kind]
    model = head.make(config, num_labels=3) if head.has_labels else head.make(config)
    batch = fixed_batch(config, kind)
    assert set(batch) == set(model.input)
    assert (batch["input_mask"].sum(-1) >= 1).all() and batch["input_mask"].min() == 0
    assert batch["segment_ids"].max() == config.type_vocab_size - 1 if not changes else True
    outputs = our_outputs(model, batch)
    assert all(np.isfinite(value).all() for value in outputs.values())


def test_targets_that_would_lose_something_are_refused(classifier, tmp_path):
    for source in (classifier, classifier / "bert_model.ckpt", classifier / "vocab.txt"):
        with pytest.raises(ValueError, match="--to: is where --from lies"):
            convert(source, classifier, "tf1", overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="full exists; --overwrite writes into it"):
        convert(classifier, tmp_path / "full", "hf")
    for name, file_format in (("x.keras", "hf"), ("folder", "keras"), ("x.h5", "keras")):
        with pytest.raises(ValueError, match="--to: expected"):
            convert(classifier, tmp_path / name, file_format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    convert(classifier, tmp_path / "full", "hf", overwrite=True)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "the only copy"


def test_bad_input_is_one_line_and_status_1(tmp_path):
    def run(*arguments):
        return warm_commands.run(["experiments/convert_checkpoint.py", *arguments], cwd=REPOSITORY)

    done = run("--from=absent", f"--to={tmp_path / 'x'}", "--format=hf")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("convert_checkpoint: absent: no such file or directory")
    assert "Traceback" not in done.stderr


def test_a_tokenizer_of_the_source_that_is_not_berts_is_a_difference(classifier, tmp_path, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    convert(classifier, tmp_path / "hf", "hf")
    assert "tokenizer of the target in transformers  3 of 3" in capsys.readouterr().out
    pieces = (tmp_path / "hf" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    unknown = pieces.index("[UNK]")
    pieces[unknown], pieces[-1] = pieces[-1], pieces[unknown]
    (tmp_path / "hf" / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    with pytest.raises(Mismatch):
        convert(tmp_path / "hf", tmp_path / "again", "hf")
    printed = capsys.readouterr().out
    assert "tokenizer of the source in transformers" in printed and "DIFFERS" in printed


def multi_label(folder, kind, num_labels):
    """Write a model directory of a classifier that a task file says something of."""
    vocab = synthetic.write_vocabulary(folder / "words.txt")
    model = bert_classifier(synthetic.small_config(), num_labels)
    rng = np.random.default_rng(11)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    labels = None if num_labels == 1 else [f"label {i}" for i in range(num_labels)]
    save_model_directory(folder / "tf1", model, vocab, labels)
    TrainedTask(kind, 13, has_pairs=True).write(folder / "tf1")
    return folder / "tf1"


@pytest.mark.parametrize(
    ("kind", "num_labels", "problem_type"),
    [
        ("classification", 3, None),
        pytest.param("multi_label", 3, "multi_label_classification", marks=pytest.mark.thorough),
        pytest.param("multi_label", 1, "multi_label_classification", marks=pytest.mark.thorough),
        pytest.param("regression", 1, "regression", marks=pytest.mark.thorough),
    ],
)
def test_what_a_classifier_is_for_comes_through_all_formats(
    kind, num_labels, problem_type, tmp_path, capsys, caplog
):
    source = multi_label(tmp_path, kind, num_labels)
    if kind == "multi_label":
        chosen = {"temperature": 1.5, "thresholds": (0.25,) * num_labels}
        TrainedTask(kind, 13, has_pairs=True, **chosen).write(source)
    with caplog.at_level("WARNING", "absl"):
        convert(source, tmp_path / "hf", "hf")
    said = "the model has temperature and thresholds, which other libraries do not use"
    assert (said in caplog.text) == (kind == "multi_label")
    assert "DIFFERS" not in capsys.readouterr().out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config.get("problem_type") == problem_type
    convert(tmp_path / "hf", tmp_path / "k" / "m.keras", "keras")
    convert(tmp_path / "k", tmp_path / "back", "tf1")
    assert read_trained_task(tmp_path / "back") == read_trained_task(source)
    # As it comes from others, without a task file.
    (tmp_path / "hf" / "bert_task.json").unlink()
    assert load_model(tmp_path / "hf").problem_type == problem_type
    assert Predictor(tmp_path / "hf").task == kind
    convert(tmp_path / "hf", tmp_path / "other", "tf1")
    task = read_trained_task(tmp_path / "other")
    assert (task and task.kind) == (None if problem_type is None else kind)
    assert Predictor(tmp_path / "other").task == kind


def test_one_output_of_transformers_is_a_number_unless_it_says_otherwise(tmp_path):
    source = multi_label(tmp_path, "regression", 1)
    convert(source, tmp_path / "hf", "hf")
    (tmp_path / "hf" / "bert_task.json").unlink()
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    del config["problem_type"]
    path.write_text(json.dumps(config))
    assert Predictor(tmp_path / "hf").task == "regression"
    path.write_text(json.dumps({**config, "problem_type": "ranking"}))
    with pytest.raises(ValueError, match="problem_type: expected one of .*, got 'ranking'"):
        load_model(tmp_path / "hf")


def test_a_problem_type_that_is_not_the_models_is_refused(tmp_path):
    config = synthetic.small_config()
    for model, problem_type, message in (
        (bert_classifier(config, 3), "regression", "regression takes one output, the model has 3"),
        (bert_classifier(config, 3), "ranking", "expected one of single_label"),
        (HEADS["encoder"].make(config), "regression", "of a classifier"),
    ):
        with pytest.raises(ValueError, match=f"problem_type: .*{message}"):
            save_hf(tmp_path, model, problem_type=problem_type)


def test_a_task_file_that_is_no_longer_true_is_removed(classifier, tmp_path):
    target = multi_label(tmp_path, "multi_label", 3)
    (target / "modules.json").write_text("[]")  # of a model for vectors
    convert(classifier, target, "tf1", overwrite=True)
    assert read_trained_task(target) is None and not (target / "modules.json").exists()


def test_verification_compares_what_a_user_gets(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = multi_label(tmp_path, "multi_label", 3)
    TrainedTask("multi_label", 13).write(source)
    convert(source, tmp_path / "hf", "hf")
    assert "answers" in capsys.readouterr().out
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "hf"), top_k=None)
    theirs = {row["label"]: row["score"] for row in pipeline(["the"])[0]}
    ours = Predictor(source).predict(["the"])
    np.testing.assert_allclose(
        [theirs[f"label {i}"] for i in range(3)], ours["probabilities"][0], atol=1e-5
    )

    def write_without(directory, model, tokenizer, labels, problem_type, dtype):
        return save_hf(directory, model, tokenizer, labels)

    monkeypatch.setattr(conversion, "save_hf", write_without)
    with pytest.raises(Mismatch):
        convert(source, tmp_path / "other", "hf")
    assert "answers" in capsys.readouterr().out
