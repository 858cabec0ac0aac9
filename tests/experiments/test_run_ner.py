"""The script that tags words: what it learns, writes and refuses, and which tags it counts."""

import json
import pathlib
import random
import shutil

import numpy as np
import pytest

from bert_tf.serving.predictor import Predictor
from bert_tf.tasks.entity_metrics import entity_scores
from bert_tf.weights.tensor_bundle import read_tensors
from data_prep.finetuning import ner
from data_prep.finetuning.folds import Fold
from experiments import run_ner
from experiments.command_line.exit_status import InputError
from experiments.finetuning import tagging
from experiments.finetuning.initial_model import initial_model
from experiments.finetuning.options import TaggingOptions
from experiments.plots import curves
from experiments.plots.curves import plot_curves
from tests.support import command_options, warm_commands
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Each word has one tag: w0 to w4 begin a person, w5 to w9 go on, w10 to w14 are places.
TAGS = ["B-PER"] * 5 + ["I-PER"] * 5 + ["B-LOC"] * 5
LENGTH = 17


def tag_of(word):
    number = int(word[1:])
    return TAGS[number] if number < len(TAGS) else "O"


def conll(count, seed, tagged=True):
    """Sentences of 2 to 13 words, and a document of each five."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        if number % 5 == 0:
            lines.append("-DOCSTART- O\n" if tagged else "-DOCSTART-\n")
        for _ in range(rng.randint(2, 13)):
            person = [f"w{rng.randrange(5)}", f"w{rng.randrange(5, 10)}"]
            other = [f"w{rng.choice([rng.randrange(10, 15), rng.randrange(15, 60)])}"]
            for word in rng.choice([person[: rng.randint(1, 2)], other, other]):
                lines.append(f"{word} {tag_of(word)}\n" if tagged else f"{word}\n")
        lines.append("\n")
    return "".join(lines)


def given_of(data, output, **changes):
    return {
        "train_file": data / "train.conll",
        "dev_file": data / "dev.conll",
        "test_file": data / "test.conll",
        "bert_config_file": data / "bert_config.json",
        "vocab_file": data / "vocab.txt",
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "max_seq_length": LENGTH,
        "learning_rate": 1e-2,
        "train_batch_size": 13,
        "num_train_epochs": 5,
        "eval_batch_size": 31,
        "predict_batch_size": 31,
        "pad_to_max_seq_length": True,  # one shape to compile
        **changes,
    }


def options_of(data, output, **changes):
    given = given_of(data, output, **changes)
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return command_options.parse(TaggingOptions, arguments, **run_ner.DEFAULTS)


def run(data, output, **changes):
    tagging.run(options_of(data, output, **changes))


def without_training(data, output, **changes):
    """Run with flags that take the model out of the output folder."""
    given = {"do_train": False, "train_file": None, "bert_config_file": None, "vocab_file": None}
    run(data, output, **{**given, **changes})


def results(folder, name="eval_results"):
    found = json.loads((folder / f"{name}.json").read_text())
    lines = dict(line.split(" = ") for line in (folder / f"{name}.txt").read_text().splitlines())
    assert {key: float(value) for key, value in lines.items()} == found
    return found


def columns(path):
    """Words and, by sentence, each further column of a predictions file."""
    sentences = [s.splitlines() for s in path.read_text().split("\n\n") if s]
    rows = [[line.split(" ") for line in sentence] for sentence in sentences]
    width = len(rows[0][0])
    return [[[row[c] for row in sentence] for sentence in rows] for c in range(width)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, (split, count) in enumerate((("train", 131), ("dev", 29), ("test", 23))):
        (folder / f"{split}.conll").write_text(conll(count, number))
    synthetic.write_vocabulary(folder / "vocab.txt")
    config = synthetic.small_config(num_hidden_layers=1, max_position_embeddings=61)
    config.to_json_file(folder / "bert_config.json")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "ner"
    run(data, output, report=True)
    return output


def test_it_learns_and_scores_what_it_writes(data, trained):
    found = results(trained)
    assert found["eval_entity_f1"] > 90
    assert (trained / "labels.txt").read_text() == "O\nB-LOC\nB-PER\nI-PER\n"
    for split, suffix, name, prefix in (
        ("dev", "", "eval_results", "eval"),
        ("test", "_test", "test_results", "test"),
    ):
        words, true, predicted = columns(trained / f"predictions_{split}.conll")
        sentences = list(ner.read_sentences(data / f"{split}.conll"))
        assert words == [list(s.words) for s in sentences]
        assert true == [list(s.tags) for s in sentences]
        scores = entity_scores(true, predicted)
        figures = results(trained, name)
        assert figures[f"{prefix}_entity_f1"] == scores.f1
        assert figures[f"{prefix}_entity_precision"] == scores.precision
        assert figures[f"{prefix}_entity_recall"] == scores.recall
        assert figures[f"{prefix}_token_accuracy"] == scores.accuracy
        assert (trained / f"ner_report{suffix}.txt").read_text() == scores.report()
        assert (trained / f"ner_types{suffix}.png").read_bytes().startswith(b"\x89PNG")
    assert (trained / "curves.png").exists()
    assert "B-" not in (page := (trained / "report.html").read_text()) and "<h2" in page
    # Sentences of more words than a sequence holds are trained on in several.
    stored = json.loads((trained / "run.json").read_text())["run"]
    assert found["global_step"] == stored["best_step"]
    sentences = list(ner.read_sentences(data / "train.conll"))
    assert max(len(s.words) for s in sentences) > LENGTH - 2
    tokenizer = initial_model(options_of(data, trained)).tokenizer
    windows = ner.sentence_windows(sentences, tokenizer, LENGTH)
    assert stored["steps"] == int(len(windows) / 13 * 5) > int(131 / 13 * 5)


def test_curves_are_all_in_percent(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, *where: drawn.append(figure))
    plot_curves(trained / "metrics.jsonl", tmp_path / "curves.png")
    axis = drawn[0].axes[1]
    assert axis.get_title() == "Scores" and axis.get_ylim() == (0, 100)
    last = {line.get_label(): line.get_ydata()[-1] for line in axis.lines}
    assert last["entity f1 (held out)"] > 90 and last["accuracy"] > 90


def test_a_finished_run_is_not_trained_again(data, trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.glob("bert_model*")}
    report = (trained / "ner_report.txt").read_text()
    # The test file has no part in training.
    run(data, trained, do_predict=False, test_file=None)
    assert "seed 12345: is finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in trained.glob("bert_model*")} == before
    assert (trained / "ner_report.txt").read_text() == report
    with pytest.raises(InputError, match="holds a run with learning_rate 0.01, and now it is 0.1"):
        run(data, trained, learning_rate=0.1)


@pytest.mark.slow
def test_a_stopped_run_goes_on(data, tmp_path, monkeypatch, capsys):
    options = {"num_train_steps": 7, "eval_every_steps": 2, "save_checkpoints_steps": 4}
    options |= {"do_predict": False}
    run(data, tmp_path / "whole", **options)
    whole = capsys.readouterr().out
    figures_of, calls = tagging.figures_of, []

    def stopping(scores):
        calls.append(scores)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return figures_of(scores)

    monkeypatch.setattr(tagging, "figures_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "parts", **options)
    monkeypatch.undo()
    capsys.readouterr()
    run(data, tmp_path / "parts", **options)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert steps == [line for line in whole.splitlines() if line.startswith(("step 6", "step 7"))]
    a, b = (read_tensors(tmp_path / name / "bert_model.ckpt") for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("eval_results.json", "predictions_dev.conll"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_words_weigh_by_their_tags(data, tmp_path, capsys):
    words = (data / "train.conll").read_text().split("\n")
    tags = [line.split()[1] for line in words if line and not line.startswith("-DOC")]
    counts = {tag: tags.count(tag) for tag in set(tags)}
    changes = {"do_eval": False, "do_predict": False, "num_train_steps": 1, "log_steps": 1}
    run(data, tmp_path, class_weights="balanced", label_smoothing=0.1, **changes)
    stored = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert stored["label_smoothing"] == 0.1
    expected = [len(tags) / len(counts) / counts[tag] for tag in stored["labels"]]
    assert stored["class_weights"] == pytest.approx(expected)
    assert "weights of the labels in the loss: " in capsys.readouterr().out
    assert 0 < json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] < 9


@pytest.mark.parametrize("context", [False, True])
def test_a_fold_is_tagged_as_its_part_of_the_file_is(data, tmp_path, context):
    """Sentences that are held out are those of the records, with their own documents."""
    given = {"dev_file": None, "do_predict": False, "document_context": context}
    options = options_of(data, tmp_path, **given, folds=3)
    start = initial_model(options)
    plans = [tagging._Tagging(options, start, Fold(number, 3)) for number in range(3)]
    sentences = [sentence for plan in plans for sentence in plan.dev.sentences]
    assert sorted(s.line for s in sentences) == [
        s.line for s in ner.read_sentences(data / "train.conll")
    ]
    for plan in plans:
        plan.dev.read(np.zeros((len(plan.dev.records), LENGTH), np.int64))
        assert [len(tags) for tags in plan.dev.predicted] == [
            len(sentence.words) for sentence in plan.dev.sentences
        ]


@pytest.mark.thorough
def test_tags_that_training_lacks_count_as_missed(data, trained, tmp_path, capsys):
    text = "w1 B-PER\nw6 I-PER\nw20 O\n\nw11 B-LOC\nw21 B-NEW\nw22 I-NEW\nw23 B-NEW\n"
    (tmp_path / "dev.conll").write_text(text)
    output = shutil.copytree(trained, tmp_path / "ner")
    options = {"do_predict": False, "test_file": None, "dev_file": tmp_path / "dev.conll"}
    without_training(data, output, **options)
    printed = capsys.readouterr()
    assert (
        "dev.conll: 3 words have tags that are not among the labels (B-NEW 2, I-NEW 1); "
        "no model predicts them, so they count as missed\n"
    ) in printed.err
    _, true, predicted = columns(output / "predictions_dev.conll")
    assert true[1] == ["B-LOC", "B-NEW", "I-NEW", "B-NEW"]
    assert predicted == [["B-PER", "I-PER", "O"], ["B-LOC", "O", "O", "O"]]
    found = results(output)
    assert found["eval_entity_recall"] == 50 and found["eval_entity_precision"] == 100
    assert "NEW: precision:   0.00%; recall:   0.00%; FB1:   0.00  0" in printed.out
    # With training, too.
    options |= {"num_train_steps": 3, "dev_file": tmp_path / "dev.conll"}
    run(data, tmp_path / "new", **options)
    assert "NEW" not in (tmp_path / "new" / "labels.txt").read_text()


def test_prediction_by_the_folder_alone(data, trained, tmp_path):
    output = shutil.copytree(trained, tmp_path / "ner")
    expected = columns(trained / "predictions_test.conll")
    (tmp_path / "bare.conll").write_text(conll(23, 2, tagged=False))
    options = {"do_eval": False, "dev_file": None}
    without_training(data, output, **options, test_file=tmp_path / "bare.conll")
    assert columns(output / "predictions_test.conll") == [expected[0], expected[2]]
    # Hidden tags that are given as O.
    (tmp_path / "hidden.conll").write_text("w1 O\nw6 O\n")
    (output / "test_results.json").unlink()
    without_training(data, output, **options, test_file=tmp_path / "hidden.conll")
    path = output / "predictions_test.conll"
    assert path.read_text() == "w1 O B-PER\nw6 O I-PER\n\n"
    assert not (output / "test_results.json").exists()


@pytest.mark.thorough
def test_columns_schemes_and_context(data, tmp_path, capsys):
    def rewrite(split):
        """IOB1 in the first column, the words in the last."""
        lines = (data / f"{split}.conll").read_text().splitlines()
        text = [line and f"{line.split()[1].replace('B-', 'I-')}\tx\t{line.split()[0]}\n"
                for line in lines if not line.startswith("-DOCSTART-")]  # fmt: skip
        text = ["-DOCSTART-\tx\tx\n", *(line or "\n" for line in text)]
        (tmp_path / f"{split}.conll").write_text("".join(text))

    for split in ("train", "dev", "test"):
        rewrite(split)
    files = {f"{split}_file": tmp_path / f"{split}.conll" for split in ("train", "dev", "test")}
    options = {
        "token_column": 2,
        "tag_column": 0,
        "tag_scheme": "bio",
        "document_context": True,
        "max_seq_length": 31,
        "num_train_epochs": 3,
    }
    run(data, tmp_path / "ner", **files, **options)
    printed = capsys.readouterr().out
    # One document, but a sequence for each sentence, and all of them full.
    assert "train: 1 examples, 131 sequences, 31.0 tokens each, 131 of full length" in printed
    steps = json.loads((tmp_path / "ner" / "run.json").read_text())["run"]["steps"]
    assert steps == int(131 / 13 * 3)
    words, true, predicted = columns(tmp_path / "ner" / "predictions_test.conll")
    sentences = list(ner.read_sentences(data / "test.conll"))
    assert words == [list(s.words) for s in sentences]
    flat = [tag for tags in true for tag in tags]
    assert {"B-PER", "I-PER", "B-LOC"} <= set(flat)
    assert results(tmp_path / "ner", "test_results")["test_entity_f1"] == pytest.approx(
        entity_scores(true, predicted).f1
    )
    right = np.mean([t == p for ts, ps in zip(true, predicted) for t, p in zip(ts, ps)])  # noqa: B905
    assert right > 0.8  # the rows of windows are those of their words


@pytest.mark.thorough
def test_data_dir_and_bad_sentences(data, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        text = (data / f"{split}.conll").read_text()
        (folder / f"{split}.txt").write_text(text + "w1 PER\n\n")
    files = dict.fromkeys(("train_file", "dev_file", "test_file"))
    options = {**files, "data_dir": folder, "num_train_steps": 2}
    last = (data / "train.conll").read_text().count("\n") + 1
    with pytest.raises(ValueError, match=rf"train\.txt, line {last}: expected a tag, O, or a form"):
        run(data, tmp_path / "strict", **options)
    run(data, tmp_path / "ner", **options, skip_bad_examples=True)
    assert "left out 1 bad ones" in capsys.readouterr().out
    words, _, _ = columns(tmp_path / "ner" / "predictions_test.conll")
    assert len(words) == 23


@pytest.mark.thorough(traced=True)
@pytest.mark.parametrize(
    ("tags", "labels", "found"),
    [
        # BILOU with another separator; types alone; and tags of every word, as parts of speech.
        ("B_PER I_PER U_LOC O", "O B_PER I_PER U_LOC", "PER:w0 w5 LOC:w12"),
        pytest.param("PER PER LOC O", "O LOC PER", "PER:w0 w5 LOC:w12", marks=pytest.mark.thorough),
        pytest.param(
            "NOUN VERB NOUN X",
            "NOUN VERB X",
            "NOUN:w0 VERB:w5 X:w40 NOUN:w12 X:w41",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_other_tag_schemes(data, tmp_path, tags, labels, found):
    other = dict(zip(("B-PER", "I-PER", "B-LOC", "O"), tags.split(), strict=True))
    for split in ("train", "dev", "test"):
        lines = (data / f"{split}.conll").read_text().splitlines()
        rows = [line.split() for line in lines]
        (tmp_path / f"{split}.conll").write_text(
            "".join(f"{r[0]} {other[r[1]]}\n" if r else "\n" for r in rows)
        )
    files = {f"{split}_file": tmp_path / f"{split}.conll" for split in ("train", "dev")}
    untagged = tmp_path / "untagged.conll"
    untagged.write_text(conll(3, 2, tagged=False))
    output = tmp_path / "ner"
    run(data, output, **files, test_file=untagged)
    assert (output / "labels.txt").read_text().split() == labels.split()
    assert results(output)["eval_entity_f1"] > 90
    (entities,) = Predictor(output).entities(["w0 w5 w40 w12 w41"])
    assert " ".join(f"{entity['type']}:{entity['text']}" for entity in entities) == found


def test_the_training_file_says_what_tags_mean(data, tmp_path):
    """Of a dev file without O, whose tags alone could be each a chunk by itself."""
    (tmp_path / "train.conll").write_text("w0 PER\nw5 PER\nw40 O\n\n" * 31)
    (tmp_path / "dev.conll").write_text("w0 PER\nw5 PER\n\n" * 3)
    files = {f"{split}_file": tmp_path / f"{split}.conll" for split in ("train", "dev")}
    run(data, tmp_path / "ner", **files, tag_scheme="bio", num_train_steps=2)
    _, true, _ = columns(tmp_path / "ner" / "predictions_dev.conll")
    assert true == [["B-PER", "I-PER"]] * 3


def test_files_of_two_schemes_are_refused_before_training(data, tmp_path):
    (tmp_path / "dev.conll").write_text("w1 PER\nw2 O\n")
    message = r"dev\.conll: its tags and the labels: .* got 'PER', among B-LOC B-PER I-PER O PER"
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "ner", dev_file=tmp_path / "dev.conll")


def test_a_vocabulary_of_another_model_is_told(data, tmp_path, caplog):
    vocab = (data / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join([*vocab[:-9], *"ABC"]) + "\n")
    initial_model(options_of(data, tmp_path / "ner", vocab_file=tmp_path / "vocab.txt"))
    assert f"vocab.txt: the vocabulary has {len(vocab) - 6} pieces, the model" in caplog.text
    assert "do_lower_case is set, but" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev_file": None}, "ner: no dev split among train, test"),
        ({"train_file": None}, "labels: ner needs a training file, or the labels themselves"),
        ({"data_dir": "here"}, "ner: give either data_dir, or train_file, dev_file, test_file"),
        ({"tag_column": 4}, r"train\.conll, line 2: expected columns 0 \(words\) and 4 \(tags\)"),
        ({"do_train": False}, "ner: no such file or directory; expected a model directory"),
    ],
)
def test_flags_that_cannot_be(data, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(data, tmp_path / "ner", **changes)


def test_bad_input_is_one_line_and_status_1(data, tmp_path):
    (tmp_path / "train.conll").write_text("w1 B-PER\nw2 PER\n")
    script = str(REPOSITORY / "experiments" / "run_ner.py")
    given = given_of(data, tmp_path / "ner", train_file=tmp_path / "train.conll")
    names = ("train_file", "bert_config_file", "vocab_file", "output_dir")
    arguments = [f"--{name}={given[name]}" for name in names]
    done = warm_commands.run(
        [script, "--do_train", "--max_seq_length=17", *arguments], cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"run_ner: {tmp_path}/train.conll, line 2: expected a tag, O, or a form and a "
        "type such as B-PER (forms are B I M E L S U W), got 'PER'"
    )
    assert "Traceback" not in done.stderr
