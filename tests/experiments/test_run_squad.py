"""Fine-tuning on SQuAD: what the script writes and refuses, and that it learns."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from bert_tf.config import BertConfig
from bert_tf.models.task_models import HEADS
from bert_tf.options import define
from bert_tf.options import read as read_options
from bert_tf.tasks import squad_metrics
from bert_tf.tasks.answer_decoding import Predictions
from bert_tf.tasks.squad_metrics import normalize_answer
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.training.log import read_metrics
from bert_tf.weights.load import load_model
from bert_tf.weights.save import save_model_directory
from data_prep.finetuning.folds import Fold
from experiments import run_squad
from experiments.command_line.exit_status import InputError
from experiments.finetuning import question_answering
from experiments.finetuning.initial_model import initial_model
from experiments.finetuning.options import QuestionAnsweringOptions
from experiments.finetuning.question_answering import LOGGED, Answerer, figures_of, prepare
from tests.support import warm_commands

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "squad"
LENGTHS = {"max_seq_length": 67, "doc_stride": 23, "max_query_length": 17}


def _load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden_squad", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


golden = _load_make_golden()


@pytest.fixture(scope="module")
def original():
    checkout = os.environ.get("BERT_TF_ORIGINAL")
    if not checkout:
        pytest.skip("set BERT_TF_ORIGINAL to a checkout of google-research/bert")
    return golden.load_original(checkout)


def parsed(**given):
    values = flags.FlagValues()
    define(QuestionAnsweringOptions, values, **run_squad.DEFAULTS)
    values(["run_squad.py", *(f"--{name}={value}" for name, value in given.items())])
    return values


def squad(**given):
    question_answering.run(read_options(QuestionAnsweringOptions, parsed(**given)))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def save_model(folder, vocab_file, seed=3, **changes):
    """Write a random span model, whose logits are far enough apart not to tie."""
    config = BertConfig(
        vocab_size=len(load_vocab(vocab_file)),
        hidden_size=22,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=131,
    )
    model = HEADS["span"].make(dataclasses.replace(config, **changes))
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if not weight.path.endswith(("gamma", "beta")):
            weight.assign(rng.normal(0, 0.5, weight.shape))
    save_model_directory(folder, model, vocab_file)
    return str(folder)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "m", GOLDEN / "vocab_uncased.txt")


def data(*questions, context="The old mill stands by the river. Asa built it in 1731."):
    """Content of a file: questions are (id, question, answer), the answer None where it is left."""
    qas = []
    for name, text, answer in questions:
        qa = {"id": name, "question": text, "answers": [], "is_impossible": not answer}
        if answer:
            qa["answers"] = [{"text": answer, "answer_start": context.index(answer)}]
        qas.append(qa)
    return {
        "version": "own",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}],
    }


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# === A run ===


@pytest.fixture(scope="module")
def run_v1(tmp_path_factory, model_dir):
    """Return the flags of a run on version 1.1 that is finished."""
    given = {
        "model_dir": model_dir,
        "do_train": True,
        "train_file": GOLDEN / "v1.json",
        "do_eval": True,
        "do_predict": True,
        "predict_file": GOLDEN / "v1.json",
        "train_batch_size": 11,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "output_dir": tmp_path_factory.mktemp("v1") / "run",
        **LENGTHS,
    }
    squad(**given)
    return given


@pytest.mark.thorough
def test_scores_are_those_of_the_predictions(run_v1):
    folder = run_v1["output_dir"]
    references = squad_metrics.read_references(GOLDEN / "v1.json")
    answers = read(folder / "predictions.json")
    assert list(answers) == list(references)
    assert read(folder / "bert_task.json")["kind"] == "span"
    results = read(folder / "eval_results.json")
    step = read(folder / "run.json")["run"]["best_step"]
    assert results == {
        **squad_metrics.evaluate_v1(references, answers),
        "total": len(references),
        "global_step": step,
    }
    lines = (folder / "eval_results.txt").read_text().splitlines()
    assert lines == [f"{name} = {results[name]}" for name in sorted(results)]
    best = read(folder / "nbest_predictions.json")
    assert {name: rows[0]["text"] for name, rows in best.items()} == answers
    assert not (folder / "null_odds.json").exists()
    assert (folder / "curves.png").exists() and (folder / "bert_model.ckpt.index").exists()


def test_steps_count_questions_and_not_windows(run_v1):
    folder = run_v1["output_dir"]
    (manifest,) = (read(path) for path in folder.glob("records/*/train.manifest.json"))
    counts = manifest["counts"]
    assert counts["records"] > counts["examples"] > 11
    assert read(folder / "run.json")["run"]["steps"] == int(counts["examples"] / 11 * 2)
    evaluated = read_metrics(folder / "metrics.jsonl", "eval")
    assert len(evaluated) == 2
    assert set(evaluated[0]) >= {"step", "eval_f1", "eval_exact_match"}


def test_the_best_weights_of_both_evaluations_were_kept(run_v1):
    folder = run_v1["output_dir"]
    evaluated = [line["eval_f1"] for line in read_metrics(folder / "metrics.jsonl", "eval")]
    assert read(folder / "eval_results.json")["f1"] == pytest.approx(max(evaluated))


@pytest.mark.thorough
def test_a_second_run_finds_everything_made(run_v1, capsys):
    folder = run_v1["output_dir"]
    record_files = sorted(folder.glob("records/*/*.tfrecord"))
    assert len(record_files) == 2
    kept = [*record_files, folder / "bert_model.ckpt.data-00000-of-00001"]
    before = [path.stat().st_mtime_ns for path in kept]
    answers = (folder / "nbest_predictions.json").read_bytes()
    capsys.readouterr()
    squad(**run_v1)
    assert "is finished in" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert (folder / "nbest_predictions.json").read_bytes() == answers
    # How answers are found may change without training anew; what was trained on may not.
    squad(**{**run_v1, "n_best_size": 3})
    assert max(map(len, read(folder / "nbest_predictions.json").values())) == 3
    with pytest.raises(InputError, match="holds a run of other records.*--overwrite"):
        squad(**{**run_v1, "doc_stride": 29})
    squad(**run_v1)
    assert (folder / "nbest_predictions.json").read_bytes() == answers


def test_a_fold_answers_its_part_of_the_training_file(model_dir, tmp_path):
    given = {"model_dir": model_dir, "do_train": True, "do_eval": True, "folds": 2, **LENGTHS}
    given |= {"train_file": GOLDEN / "v1.json", "output_dir": tmp_path}
    options = read_options(QuestionAnsweringOptions, parsed(**given))
    start = initial_model(options)
    plans = [question_answering._QuestionAnswering(options, start, Fold(n, 2)) for n in (0, 1)]
    model = load_model(model_dir).model
    ids = [set(plan.answerer.final_spans(model).answers) for plan in plans]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(squad_metrics.read_references(GOLDEN / "v1.json"))


def test_prediction_alone_needs_no_answers(run_v1, tmp_path, capsys):
    content = read(GOLDEN / "v1.json")
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                del qa["answers"]
    path = write(tmp_path / "test.json", content)
    given = {"model_dir": run_v1["output_dir"], "predict_file": path, **LENGTHS}
    squad(**given, do_predict=True, output_dir=tmp_path / "new" / "out")
    assert read(tmp_path / "new/out/predictions.json") == read(
        run_v1["output_dir"] / "predictions.json"
    )
    assert not (tmp_path / "new/out/eval_results.json").exists()
    assert "evaluation" not in capsys.readouterr().out
    for version_2 in (False, True):
        with pytest.raises(ValueError, match="test.json: .* lacks 'answers'"):
            squad(**given, do_eval=True, output_dir=tmp_path, version_2_with_negative=version_2)


@pytest.fixture(scope="module")
def run_v2(tmp_path_factory, model_dir):
    """Return the flags of a run on version 2.0 that is finished."""
    given = {
        "model_dir": model_dir,
        "version_2_with_negative": True,
        "do_eval": True,
        "predict_file": GOLDEN / "v2.json",
        "output_dir": tmp_path_factory.mktemp("v2") / "run",
        **LENGTHS,
    }
    train = {"do_train": True, "train_file": GOLDEN / "v2.json", "num_train_steps": 5}
    squad(**given, **train, train_batch_size=13, do_predict=True, report=True)
    return {**given, "model_dir": given["output_dir"]}


def test_version_2_is_scored_as_by_the_official_script(run_v2, tmp_path, capsys):
    assert "With and without answer" in (run_v2["output_dir"] / "report.html").read_text()
    content = read(GOLDEN / "v2.json")
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            # Of an answer such as "the" nothing is left to compare: none would be right too.
            paragraph["qas"] = [
                qa
                for qa in paragraph["qas"]
                if qa["is_impossible"] or normalize_answer(qa["answers"][0]["text"])
            ]
    path = write(tmp_path / "v2.json", content)
    run_v2 = {**run_v2, "predict_file": path}
    references = squad_metrics.read_references(path)
    found = []
    for threshold in (0.0, -math.inf, 2.5):
        folder = tmp_path / str(threshold)
        given = {**run_v2, "output_dir": folder, "null_score_diff_threshold": threshold}
        squad(**given, do_predict=True)
        answers, odds = read(folder / "predictions.json"), read(folder / "null_odds.json")
        assert {name for name in odds if odds[name] > threshold} <= {
            name for name, answer in answers.items() if not answer
        }
        expected = squad_metrics.evaluate_v2(references, answers, odds)
        results = read(folder / "eval_results.json")
        results["exact"] = results.pop("exact_match")
        assert {name: results.pop(name) for name in expected} == expected
        assert set(results) == {"tuned_f1", "tuned_f1_thresh", "global_step"}
        found.append((expected["f1"], results["tuned_f1"], results["tuned_f1_thresh"]))
    # The threshold that is looked for does not depend on the one that is given, ...
    assert len({each[1:] for each in found}) == 1
    assert found[1][0] == pytest.approx(100 * 5 / len(references))
    # ... and gives what is said.
    printed = capsys.readouterr().out
    (advice,) = set(re.findall(r"--null_score_diff_threshold=(\S+) would give", printed))
    squad(**{**run_v2, "output_dir": tmp_path, "null_score_diff_threshold": advice})
    results = read(tmp_path / "eval_results.json")
    assert (
        results["f1"] == pytest.approx(found[0][1]) and results["f1"] >= results["best_f1"] - 1e-9
    )
    assert results["f1"] > max(found[1][0], found[2][0])


def test_the_threshold_of_answering_nothing_is_below_all():
    references = {"a": (), "b": (), "c": ()}
    answers, odds = dict.fromkeys(references, "x"), {"a": -2.0, "b": 0.5, "c": 3.0}
    best_spans = Predictions(answers, {}, odds)
    figures = figures_of(references, best_spans, 0.0, True)
    assert figures["f1"] == pytest.approx(200 / 3) and figures["tuned_f1"] == 100
    threshold = figures["tuned_f1_thresh"]
    assert figures_of(references, best_spans, threshold, True)["f1"] == 100
    assert figures["best_f1_thresh"] == 0  # as the official script has it


def test_version_2_chooses_by_the_best_threshold(run_v2, capsys):
    run = read(run_v2["output_dir"] / "run.json")["run"]
    assert set(run["figures"]) == set(LOGGED)
    squad(**run_v2)
    results = read(run_v2["output_dir"] / "eval_results.json")
    assert results["tuned_f1"] == pytest.approx(run["figures"]["tuned_f1"])
    printed = capsys.readouterr().out
    assert re.search(r"NoAns_total +5 questions\n", printed)
    assert re.search(r"best_f1_thresh +-?[0-9.]+ \(difference of logits\)\n", printed)
    assert re.search(r"HasAns_f1 +[0-9.]+ %\n", printed)
    assert "no answer to all questions would have F1 10.71 %" in printed


@pytest.mark.thorough
@pytest.mark.parametrize(
    "context",
    [
        "\t ",
        pytest.param("It is so.", marks=pytest.mark.slow),
        pytest.param("", marks=pytest.mark.slow),
    ],
)
def test_files_without_any_answer_are_no_failure(context, model_dir, tmp_path):
    content = data(("a", "Who?", None), ("b", "", None), context=context)
    content["data"] += data(("c", "Who built it?", None))["data"]
    path = write(tmp_path / "x.json", content)
    given = {"do_train": True, "train_file": path, "num_train_steps": 2, "train_batch_size": 2}
    squad(
        model_dir=model_dir,
        version_2_with_negative=True,
        do_eval=True,
        do_predict=True,
        predict_file=path,
        output_dir=tmp_path / "run",
        **given,
        **LENGTHS,
    )
    assert list(read(tmp_path / "run" / "predictions.json")) == ["a", "b", "c"]
    results = read(tmp_path / "run" / "eval_results.json")
    assert results["NoAns_total"] == 3 and "HasAns_total" not in results


# === The way from logits to answers ===


def answerer(path, model_dir, tmp_path, **given):
    values = parsed(
        model_dir=model_dir,
        do_eval=True,
        predict_file=path,
        output_dir=tmp_path / "records",
        **given,
    )
    options = read_options(QuestionAnsweringOptions, values)
    start = initial_model(options)
    return Answerer(prepare(options, start), start, options)


def test_padding_is_no_answer_unless_asked_for(model_dir, tmp_path):
    def model(inputs, training):
        """Score padding highest, then the second token of the document."""
        in_document = tf.cast(inputs["segment_ids"] > 0, tf.float32)
        second = tf.cast(tf.equal(tf.cumsum(in_document, axis=1), 2.0), tf.float32)
        logits = second + 9.0 * (1.0 - tf.cast(inputs["input_mask"], tf.float32))
        return {"start_logits": logits, "end_logits": logits}

    path = write(tmp_path / "x.json", data(("a", "who?", "Asa"), ("b", "who, who?", "Asa")))
    lengths = {"max_seq_length": 131, "max_query_length": 17}
    ours = answerer(path, model_dir, tmp_path, **lengths).best_spans(model, batch_size=2)
    assert set(ours.answers.values()) == {"o"}
    padded = answerer(path, model_dir, tmp_path, **lengths, pad_to_max_seq_length=True)
    assert set(padded.best_spans(model, batch_size=2).answers.values()) == {"empty"}


def test_answers_do_not_depend_on_the_batch(shared_data, tmp_path):
    """Real questions: as they come, by length, or all padded to the full length."""
    vocab = sorted((shared_data / "vocab").glob("*uncased*"))[0]
    model_dir = save_model(tmp_path / "m", vocab)
    content = read(shared_data / "squad" / "dev-v1.1.subset.json")
    content["data"] = [
        {**article, "paragraphs": article["paragraphs"][:1]} for article in content["data"][:5]
    ]
    path = write(tmp_path / "dev.json", content)
    found = []
    for changes in ({}, {"group_by_length": False}, {"predict_batch_size": 3}):
        folder = tmp_path / str(len(found))
        given = {"predict_file": path, "do_predict": True, "output_dir": folder, **changes}
        squad(model_dir=model_dir, cache_dir=tmp_path / "records", max_seq_length=131, **given)
        found.append((read(folder / "predictions.json"), read(folder / "nbest_predictions.json")))
    assert len(found[0][0]) > 19
    for answers, nbest in found[1:]:
        assert answers == found[0][0]
        for name, rows in nbest.items():
            expected = found[0][1][name]
            assert [row["text"] for row in rows] == [row["text"] for row in expected]
            for key in ("probability", "start_logit", "end_logit"):
                np.testing.assert_allclose(
                    [row[key] for row in rows], [row[key] for row in expected], atol=2e-4
                )


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_files_equal_the_originals(original, name, model_dir, tmp_path, monkeypatch):
    """With padding to the full length: byte for byte what write_predictions makes of the logits."""
    version_2 = name == "v2"
    content = read(GOLDEN / f"{name}.json")
    if version_2:  # questions about nothing are what the original fails at
        content["data"] = [
            {**a, "paragraphs": [p for p in a["paragraphs"] if len(p["context"]) > 5]}
            for a in content["data"]
        ]
    path = write(tmp_path / "x.json", content)
    seen = {}
    decode = question_answering.decode_answers

    def keep(questions, windows, starts, ends, *rest, **options):
        seen.update(starts=starts, ends=ends)  # of the latest
        return decode(questions, windows, starts, ends, *rest, **options)

    monkeypatch.setattr(question_answering, "decode_answers", keep)
    given = {"null_score_diff_threshold": -6.0, "version_2_with_negative": version_2}
    squad(
        model_dir=model_dir,
        predict_file=path,
        do_predict=True,
        pad_to_max_seq_length=True,
        output_dir=tmp_path,
        **given,
        **LENGTHS,
    )
    for flag, value in given.items():
        setattr(original.FLAGS, flag, value)
    padded = dict(seen)
    alone = {"model_dir": model_dir, "predict_file": path, "output_dir": tmp_path / "cut"}
    squad(**alone, do_predict=True, **given, **LENGTHS)
    for name in ("starts", "ends"):
        used = seen[name] > -1e8
        np.testing.assert_allclose(padded[name][used], seen[name][used], atol=1e-3)
        assert 0 < used.mean() < 1 and padded[name].min() > -1e8
    examples = original.read_squad_examples(str(path), False)
    features = []
    tokenizer = original.tokenization.FullTokenizer(str(GOLDEN / "vocab_uncased.txt"))
    original.convert_examples_to_features(
        examples, tokenizer, *LENGTHS.values(), False, features.append
    )
    results = [
        original.RawResult(feature.unique_id, start.tolist(), end.tolist())
        for feature, start, end in zip(features, padded["starts"], padded["ends"], strict=True)
    ]
    names = ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    theirs = [str(tmp_path / f"original-{name}") for name in names]
    original.write_predictions(examples, features, results, 20, 30, True, *theirs)
    for name, path in zip(names[: 3 if version_2 else 2], theirs, strict=False):
        assert (tmp_path / name).read_bytes() == pathlib.Path(path).read_bytes(), name
    if version_2:
        given_none = [not answer for answer in read(tmp_path / names[0]).values()]
        assert 5 < sum(given_none) < len(given_none) - 5


def test_flags_have_the_originals_defaults(original):
    values = parsed(output_dir="x")
    ours = {name: values[name].default for name in values}
    same = {name: value for name, value in vars(original.FLAGS).items() if name != "do_lower_case"}
    assert len(same) > 25
    # The test above sets two.
    same |= {"version_2_with_negative": False, "null_score_diff_threshold": 0.0}
    assert {name: ours.get(name, "absent") for name in same} == same


# === Learning ===

OWN_CONTEXT = "Ann has a red boat . Bob has an old mill . Eve has the tall tree ."
OWN_QUESTIONS = (
    ("q1", "what has Ann ?", "red boat"),
    ("q2", "what has Bob ?", "old mill"),
    ("q3", "what has Eve ?", "tall tree"),
    ("q4", "who has a boat ?", "Ann"),
    ("q5", "who has a mill ?", "Bob"),
    ("q6", "who has a tree ?", "Eve"),
    ("q7", "who has a horse ?", None),
)


@pytest.mark.thorough
def test_it_learns_a_handful_of_questions(tmp_path):
    words = dict.fromkeys((OWN_CONTEXT + " what who ? horse").lower().split())
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    path = write(tmp_path / "own.json", data(*OWN_QUESTIONS, context=OWN_CONTEXT))
    config = BertConfig(
        vocab_size=len(words) + 5,
        hidden_size=34,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=67,
        max_position_embeddings=41,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    (tmp_path / "config.json").write_text(config.to_json_string())
    squad(
        bert_config_file=tmp_path / "config.json",
        vocab_file=vocab,
        version_2_with_negative=True,
        do_train=True,
        train_file=path,
        do_eval=True,
        do_predict=True,
        predict_file=path,
        max_seq_length=37,
        max_query_length=11,
        train_batch_size=7,
        num_train_steps=300,
        eval_every_steps=300,
        learning_rate=1e-3,  # at 2e-3 rounding decides whether a seed learns
        output_dir=tmp_path / "run",
    )
    results = read(tmp_path / "run" / "eval_results.json")
    assert results["f1"] > 90 and results["NoAns_f1"] == 100
    assert read(tmp_path / "run" / "predictions.json")["q2"] == "old mill"


# === Bad input ===


def without(key):
    content = data(("a", "Who?", "Asa"), ("b", "What?", "mill"))
    for qa in content["data"][0]["paragraphs"][0]["qas"]:
        del qa[key]
    return content


def twice():
    return data(("a", "Who?", "Asa"), ("a", "What?", "mill"))


def not_there():
    content = data(("a", "Who?", "Asa"))
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 3
    return content


UNANSWERED = data(("a", "Who?", "Asa"), ("b", "Why?", None))
TRAIN, EVALUATE, PREDICT = {"do_train": True}, {"do_eval": True}, {"do_predict": True}


@pytest.mark.parametrize(
    ("content", "given", "said"),
    [
        ("", TRAIN, r"x\.json: expected the JSON of SQuAD, got an empty file"),
        ("{", PREDICT, r"x\.json: expected the JSON of SQuAD, got .*line 1 column 2"),
        ({"data": []}, EVALUATE, r"x\.json: expected the JSON of SQuAD, an object whose"),
        ([1], TRAIN, r"x\.json: expected the JSON of SQuAD, an object whose"),
        (without("id"), PREDICT, r"x\.json: no question has id"),
        (without("question"), TRAIN, r"x\.json: no question has question"),
        (without("answers"), TRAIN, r"x\.json: no question has answers"),
        (
            without("is_impossible"),
            {**TRAIN, "version_2_with_negative": True},
            r"x\.json: no question has is_impossible: version 1\.1 has none",
        ),
        (UNANSWERED, TRAIN, r"x\.json: .*'b': .* got 0; questions .* version_2_with_negative"),
        (UNANSWERED, EVALUATE, r"x\.json: .*'b': has no answer.*--version_2_with_negative"),
        (not_there(), TRAIN, r"x\.json: no examples are left"),
        (twice(), PREDICT, r"x\.json: .*'a': expected distinct ids"),
        (data(("a", "Who?", None), context=" "), PREDICT, "no records in this file"),
    ],
)
def test_bad_files_are_named(content, given, said, model_dir, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    given = {f"{'train' if given.get('do_train') else 'predict'}_file": path, **given}
    with pytest.raises(ValueError, match=said) as raised:
        squad(model_dir=model_dir, output_dir=tmp_path / "run", **given, **LENGTHS)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("run/bert_model*"))


def test_the_answers_of_both_files_are_looked_at_before_training(model_dir, tmp_path):
    bad = write(tmp_path / "dev.json", UNANSWERED)
    train = write(tmp_path / "train.json", data(("a", "Who?", "Asa")))
    given = {"do_train": True, "train_file": train, "do_eval": True, "predict_file": bad}
    with pytest.raises(InputError, match="dev.json.*'b'"):
        squad(model_dir=model_dir, output_dir=tmp_path / "run", **given, **LENGTHS)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give at least one of"),
        ({"do_train": True}, "train_file: needed for --do_train"),
        ({"do_eval": True}, "predict_file: needed for --do_eval"),
        ({"do_predict": True}, "predict_file: needed for --do_predict"),
        ({"do_predict": True, "predict_file": "absent"}, "predict_file: no such file: absent"),
        ({"do_predict": True, "max_seq_length": 67}, "max_seq_length must be greater than"),
        ({"do_predict": True, "max_seq_length": 137}, "the model has 131 positions, got 137"),
        ({"do_predict": True, "doc_stride": 0}, "doc_stride: expected at least 1, got 0"),
        ({"do_predict": True, "n_best_size": 0}, "n_best_size: expected at least 1, got 0"),
        ({"do_predict": True, "max_answer_length": 0}, "max_answer_length: expected at least 1"),
        (
            {"do_predict": True, "null_score_diff_threshold": "nan"},
            "at least -inf, got nan",
        ),
        ({"do_train": True, "num_train_epochs": 0.1}, "make no step"),
    ],
)
def test_bad_flags_are_named(given, said, model_dir, tmp_path):
    path = write(tmp_path / "x.json", data(("a", "Who?", "Asa")))
    files = {"train_file": path, "predict_file": path} if given and len(given) > 1 else {}
    given = {"model_dir": model_dir, "output_dir": tmp_path / "o", **LENGTHS, **files, **given}
    if "max_seq_length" in said and "max_query" not in said:
        given.pop("max_query_length")
    with pytest.raises((ValueError, OSError), match=said):
        squad(**given)


def test_bad_questions_are_left_out_on_request(model_dir, tmp_path, capsys):
    content = twice()
    qas = content["data"][0]["paragraphs"][0]["qas"]
    qas.append({"id": "c", "question": "Which?", "answers": "river"})
    path = write(tmp_path / "x.json", content)
    squad(
        model_dir=model_dir,
        predict_file=path,
        do_eval=True,
        do_predict=True,
        skip_bad_examples=True,
        output_dir=tmp_path / "run",
        **LENGTHS,
    )
    assert list(read(tmp_path / "run" / "predictions.json")) == ["a"]
    assert read(tmp_path / "run" / "eval_results.json")["total"] == 1
    printed = capsys.readouterr()
    assert "left out 2 bad ones" in printed.out and "'c': expected a list" in printed.err


@pytest.mark.thorough
def test_questions_without_their_answer_are_told_on_request(model_dir, tmp_path, caplog):
    content = data(("a", "Who?", "Asa"))
    content["data"] += not_there()["data"]
    path = write(tmp_path / "x.json", content)
    given = {"model_dir": model_dir, "train_file": path, "do_train": True, "train_batch_size": 1}
    for verbose, folder in ((False, "a"), (True, "b")):
        caplog.clear()
        squad(
            verbose_logging=verbose,
            num_train_steps=1,
            output_dir=tmp_path / folder,
            **given,
            **LENGTHS,
        )
        assert "left out 1 questions whose answer is not at its place" in caplog.text
        assert ("the answer 'Asa' is not in the words" in caplog.text) == verbose


def test_bad_input_is_one_line_and_status_1(tmp_path, model_dir):
    path = write(tmp_path / "x.json", UNANSWERED)
    arguments = {"model_dir": model_dir, "train_file": path, "output_dir": tmp_path, **LENGTHS}
    done = warm_commands.run(
        [
            "experiments/run_squad.py",
            "--do_train",
            *(f"--{name}={value}" for name, value in arguments.items()),
        ],
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("run_squad: ") and "version_2_with_negative" in last
