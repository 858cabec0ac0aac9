"""Parts of the fine-tuning commands without a run: what is refused, kept and moved."""

import dataclasses
import json
import os
import shutil
import types

import numpy as np
import pytest

from bert_tf.models.task_models import HEADS, bert_classifier
from bert_tf.tasks.entity_metrics import entity_scores
from bert_tf.tasks.table import TASKS, custom_task
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.training.errors import NonFiniteLossError
from bert_tf.training.objectives import FineTuningObjective
from bert_tf.weights.save import save_hf, save_model_directory
from data_prep.finetuning.sources import Source
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TrainingOptions
from experiments.finetuning import (
    classification,
    decisions,
    embeddings,
    flow,
    initial_model,
    question_answering,
    results,
    runs,
    seed_training,
    splits,
    tagging,
    teacher,
)
from experiments.finetuning.options import (
    ClassifierOptions,
    EmbeddingOptions,
    FoldOptions,
)
from experiments.finetuning.results import FineTuningRun
from tests.support import command_options
from tests.support import synthetic_records as synthetic

LABELS = ("no", "yes")
CONFIG = synthetic.small_config(num_hidden_layers=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a model directory of a classifier, with words.txt, its vocabulary, beside it."""
    folder = tmp_path_factory.mktemp("model")
    vocab = synthetic.write_vocabulary(folder / "words.txt")
    save_model_directory(folder / "tf", bert_classifier(CONFIG, 2), vocab, LABELS)
    CONFIG.to_json_file(folder / "config.json")
    return folder


def options_of(**given):
    return command_options.of(
        ClassifierOptions, **{"output_dir": "out", "task_name": "SST-2", "data_dir": "d", **given}
    )


def start_of(model, name="tf", **given):
    return initial_model.initial_model(
        options_of(model_dir=model / name, do_train=True, max_seq_length=7, **given)
    )


# === The model to begin with ===


def test_what_a_model_lacks_is_named(model, tmp_path):
    def refuses(message, **given):
        with pytest.raises(InputError, match=message):
            initial_model.initial_model(options_of(do_train=True, **given))

    refuses("give --model_dir, or --bert_config_file, --vocab_file, --init_checkpoint")
    refuses("vocab_file: needed without --model_dir", bert_config_file=model / "config.json")
    dataclasses.replace(CONFIG, vocab_size=96).to_json_file(tmp_path / "small.json")
    refuses(
        "vocab_file: .*words.txt has 97 pieces, the model 96",
        bert_config_file=tmp_path / "small.json",
        vocab_file=model / "words.txt",
    )
    save_hf(tmp_path / "bare", HEADS["encoder"].make(CONFIG), None)
    refuses("vocab_file: no vocabulary lies with .*bare", model_dir=tmp_path / "bare")


def test_casing_and_accents_are_the_models_or_what_is_said(model, tmp_path):
    start = start_of(model)
    assert (start.do_lower_case, start.strip_accents) == (True, None)
    assert start_of(model, do_lower_case=False).do_lower_case is False
    tokenizer = FullTokenizer(model / "words.txt", True, strip_accents=False)
    save_hf(tmp_path / "accents", HEADS["encoder"].make(CONFIG), tokenizer)
    start = start_of(tmp_path, "accents")
    assert (start.do_lower_case, start.strip_accents) == (True, False)
    assert start_of(tmp_path, "accents", strip_accents=True).strip_accents is True


def test_a_vocabulary_without_a_file_gets_one(tmp_path):
    tokenizer = FullTokenizer.from_vocab(synthetic.VOCAB, True)
    path = initial_model._vocabulary_file(tokenizer, str(tmp_path))
    assert path == f"{tmp_path}/vocab.txt" and load_vocab(path) == synthetic.VOCAB
    assert initial_model._vocabulary_file(FullTokenizer(path), "elsewhere") == path


# === Teachers ===


def teacher_of(model, start=None, kind="classification", labels=LABELS, **given):
    options = options_of(teacher_dir=model / "tf", do_train=True, max_seq_length=7, **given)
    return teacher.find_teacher(options, start or start_of(model), kind, labels, None)


def test_a_teacher_is_found_and_taught_from(model, capsys, monkeypatch):
    found = teacher_of(model)
    assert found is not None and not found.gives_layers
    assert not capsys.readouterr().out  # nothing is known of a temperature
    monkeypatch.setattr(teacher, "copy_layers", None)  # no layer is asked for
    task = FineTuningObjective("classification")
    objective = found.teach(bert_classifier(CONFIG, 2), task)
    assert objective.task is task and objective.temperature == 2 and objective.alpha == 0.5
    assert objective.teacher.count_params() == bert_classifier(CONFIG, 2).count_params()
    assert teacher.find_teacher(options_of(), start_of(model), "regression", None, None) is None


def test_teachers_that_answer_something_else(model, tmp_path):
    with pytest.raises(InputError, match="^teacher: distillation is for kinds .*, got span"):
        teacher_of(model, kind="span")
    start = dataclasses.replace(start_of(model), strip_accents=False)
    message = "has do_lower_case True and strip_accents None, the student True and False; the two"
    with pytest.raises(InputError, match=message):
        teacher_of(model, start)
    shutil.copytree(model / "tf", tmp_path / "tf")
    (tmp_path / "tf" / "labels.txt").unlink()
    with pytest.raises(InputError, match="teacher_dir: it has 2 outputs, the task needs 3"):
        teacher_of(tmp_path, start_of(model), labels=("a", "b", "c"))
    vocab = str(model / "words.txt")
    save_model_directory(tmp_path / "encoder" / "tf", HEADS["encoder"].make(CONFIG), vocab)
    with pytest.raises(InputError, match="^teacher_dir: .*classifi"):
        teacher_of(tmp_path / "encoder", start_of(model))


# === Decisions of a classifier ===


def evaluator_of(logits, labels, names=LABELS):
    """Return what `decisions` asks of an evaluator of one or more dev splits."""
    return types.SimpleNamespace(
        logits={name: np.asarray(x, np.float32) for name, x in logits.items()},
        labels={name: np.asarray(x) for name, x in labels.items()},
        task=types.SimpleNamespace(labels=names),
    )


def test_thresholds_without_a_temperature_and_labels_that_no_example_has(capsys, caplog):
    evaluator = evaluator_of(
        {"dev": [[3.0, -3], [2, -1], [-4, -2]]}, {"dev": [[1, 0], [1, 0], [0, 0]]}
    )
    options = options_of(do_eval=True, thresholds="each")
    with caplog.at_level("WARNING", "absl"):
        trained = decisions.choose_decision(evaluator, TrainedTask("multi_label"), options)
    assert "thresholds: no example of the dev set has yes" in caplog.text
    assert trained.temperature == 1 and len(trained.thresholds) == 2
    assert 1 / (1 + np.exp(4)) <= trained.thresholds[0] < 1 / (1 + np.exp(-2))
    printed = capsys.readouterr().out
    assert printed.startswith("thresholds: no ") and "temperature" not in printed


def test_what_a_kind_does_not_have_is_refused():
    message = "calibrate: is for kind .*, got regression"
    with pytest.raises(InputError, match=message):
        decisions.check_kind(options_of(do_eval=True, calibrate=True), "regression")
    with pytest.raises(InputError, match="thresholds: is for kind multi_label, got class"):
        decisions.check_kind(options_of(do_eval=True, thresholds="one"), "classification")


def test_a_report_of_many_labels_is_named_and_not_shown(tmp_path, capsys):
    for count, shown in ((30, True), (31, False)):
        names = [f"label{i}" for i in range(count)]
        evaluator = evaluator_of({"dev": np.eye(count)}, {"dev": np.arange(count)}, names)
        decisions.report_classes(evaluator, TrainedTask("classification"), tmp_path)
        printed = capsys.readouterr().out
        text = (tmp_path / "class_report.txt").read_text()
        assert "label29" in text
        assert printed == (text if shown else f"wrote {tmp_path}/class_report.txt\n")


def test_thresholds_of_other_labels_are_refused(tmp_path):
    TrainedTask("multi_label", thresholds=(0.25, 0.5, 0.75)).write(tmp_path)
    plan = classification._Classification.__new__(classification._Classification)
    plan.model_folder, plan.options = tmp_path, options_of()
    plan.task = custom_task("multi_label", LABELS, False)
    with pytest.raises(InputError, match=f"{tmp_path}: has 3 thresholds, the task 2 labels"):
        plan._trained()
    plan.task = custom_task("multi_label", ("a", "b", "c"), False)
    assert plan._trained().thresholds == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("wnli", {}, "1"),
        ("wnli", {"majority_class": False}, None),
        ("sst-2", {}, None),
        ("sst-2", {"majority_class": True}, "1"),
        ("sst-2", {"majority_class": True, "do_predict": False}, None),
        ("sts-b", {"majority_class": True}, InputError),
    ],
)
def test_when_the_commonest_label_is_predicted_for_all(task, given, expected):
    examples = [types.SimpleNamespace(label=label) for label in ("0", "1", "1")]
    source = Source("train", ("x",), lambda on_bad, on_skip: iter(examples))
    data = splits.Data(TASKS[task], {"train": source}, {}, 97)
    options = options_of(**{"do_predict": True, **given})
    if expected is InputError:
        with pytest.raises(InputError, match="majority_class: needs a training set with one label"):
            classification._majority_label(data, options)
    else:
        assert classification._majority_label(data, options) == expected


# === Vectors ===


def embedding_options(**given):
    return command_options.of(EmbeddingOptions, output_dir=given.pop("output_dir", "out"), **given)


def test_the_folder_of_a_former_model_goes_once_it_is_older(tmp_path, capsys):
    folder = tmp_path / "sentence_transformers"
    embeddings._remove_former(folder)  # there is none
    folder.mkdir()
    index, weights = tmp_path / "bert_model.ckpt.index", folder / "model.safetensors"
    for path in (index, weights):
        path.write_text("")
    embeddings._remove_former(folder)  # of something else: no modules.json
    (folder / "modules.json").write_text("[]")
    os.utime(index, (100, 100))
    embeddings._remove_former(folder)  # it was made of this model
    assert folder.exists() and not capsys.readouterr().out
    os.utime(weights, (99, 99))
    embeddings._remove_former(folder)
    assert not folder.exists() and capsys.readouterr().out.startswith(f"removed {folder}, of")


def test_which_model_vectors_are_of(model, tmp_path):
    start = start_of(model)
    given = {"init_checkpoint": model / "tf" / "bert_model.ckpt", "output_dir": tmp_path}
    options = embedding_options(do_eval=True, **given)
    assert embeddings.used_model(options, start) == (start, False)  # nothing was trained
    shutil.copytree(model / "tf", tmp_path, dirs_exist_ok=True)
    assert embeddings.used_model(options, start) == (start, False)  # not for vectors
    TrainedTask("similarity", pooling="max").write(tmp_path)
    used, is_own = embeddings.used_model(options, start)
    assert is_own and used.weights_path == tmp_path / "bert_model.ckpt"
    training = embedding_options(do_train=True, **given)
    assert embeddings.used_model(training, start) == (start, False)


def test_negatives_are_for_pairs():
    options = embedding_options(
        do_train=True,
        train_file="x.csv",
        text_column="a",
        text_b_column="b",
        label_column="s",
        negative_columns="n",
    )
    with pytest.raises(InputError, match="negative_columns: are for pairs, got --objective=scores"):
        embeddings._check_training(options, None)  # pyright: ignore


def test_vectors_can_be_learned_without_a_dev_set(model, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("a,b\n" + "w1 w2,w3\n" * 5)
    options = embedding_options(
        do_train=True,
        train_file=tmp_path / "pairs.csv",
        text_column="a",
        text_b_column="b",
        output_dir=tmp_path / "out",
        max_seq_length=7,
        num_workers=1,
    )
    plan = embeddings._Embeddings(options, start_of(model))
    assert plan.evaluator is None and plan.job.evaluate is None and plan.job.baseline is None
    assert plan.job.num_examples == 5 and plan.job.kind == "retrieval"
    assert plan.sections() == flow.Plan.sections(plan) == []  # its report has figures alone
    assert "learns from pairs" in capsys.readouterr().out


# === Tags and answers ===


def test_the_tags_of_a_model_must_be_those_of_the_file():
    plan = tagging._Tagging.__new__(tagging._Tagging)
    plan.task = custom_task("token_classification", ("O", "B-LOC"), False)
    for size, message in ((3, "the model has 3 labels, the training file 2: O, B-LOC"), (2, None)):
        loaded = types.SimpleNamespace(model=types.SimpleNamespace(output_shape=(None, 7, size)))
        if message is None:
            plan.check(loaded)  # pyright: ignore
        else:
            with pytest.raises(InputError, match=message):
                plan.check(loaded)  # pyright: ignore


def test_tags_without_entities_have_no_picture(tmp_path, capsys):
    tagging.write_scores(entity_scores([["O", "O"]], [["O", "O"]], ("O",)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ner_report.txt"]
    assert capsys.readouterr().out == (tmp_path / "ner_report.txt").read_text()
    tagging.write_scores(entity_scores([["B-A"]], [["B-A"]], ("O", "B-A")), tmp_path, "_test")
    assert (tmp_path / "ner_types_test.png").stat().st_size > 1000


def test_what_is_kept_of_the_outputs_of_a_model():
    logits = np.array([[[0.0, 2, 1], [3, 0, 0]]], np.float32)
    found = tagging._most_likely(logits)["predicted_ids"]
    assert np.asarray(found).tolist() == [[1, 0]]
    outputs = {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    found = np.asarray(question_answering.with_padding(outputs))
    assert found.tolist() == [[[0, 3], [2, 0]]]


def test_questions_that_are_left_out_are_logged(caplog):
    def read(on_bad, on_skip):
        on_skip("question 7: its answer is not at its place")
        yield from ()

    source = question_answering._with_log(Source("train", ("x",), read))
    told = []
    with caplog.at_level("WARNING", "absl"):
        for on_skip in (told.append, None):
            assert list(source.read(None, on_skip)) == []
    assert told == ["question 7: its answer is not at its place"]
    assert caplog.text.count(told[0]) == 2


def test_records_that_are_not_of_the_questions_are_refused(monkeypatch):
    class Records(list):
        path = "dev.tfrecord"

    data = types.SimpleNamespace(examples=lambda _: ["q"], records=lambda _: Records([1, 2]))
    monkeypatch.setattr(question_answering.squad, "question_windows", lambda *_: ["w"] * 3)
    options = types.SimpleNamespace(window_rule=None)
    start = types.SimpleNamespace(tokenizer=None)
    with pytest.raises(RuntimeError, match="dev.tfrecord: has 2 records, expected 3; remove its"):
        question_answering.Answerer(data, start, options)  # pyright: ignore


# === Data and runs ===


def test_training_needs_labels(model):
    source = Source("train", ("a.csv",), lambda *_: iter(()), labelled=False)
    options = options_of(do_train=True)
    start = start_of(model)
    with pytest.raises(InputError, match="a.csv: the train split has no labels"):
        splits.make_records(TASKS["sst-2"], [source], options, start)
    with pytest.raises(InputError, match="sst-2: no dev split among train"):
        splits.make_records(TASKS["sst-2"], [source], options, start, parts=["dev"])


def test_folds_are_trained_on_one_host():
    options = options_of(do_train=True, do_eval=True)
    several = TrainingOptions(distribution_strategy="multi_worker_mirrored")
    options = dataclasses.replace(options, training=several, cross_validation=FoldOptions(folds=3))
    with pytest.raises(InputError, match="folds: are trained on one host, not with multi_worker"):
        options.check_together()


def test_curves_that_cannot_be_drawn_are_told(tmp_path, monkeypatch, caplog):
    def draw(metrics, png):
        raise ImportError("no matplotlib")

    monkeypatch.setattr(results, "plot_curves", draw)
    (tmp_path / "metrics.jsonl").write_text("")
    for folder in (tmp_path, tmp_path / "none"):
        with caplog.at_level("WARNING", "absl"):
            results.draw_curves([types.SimpleNamespace(folder=str(folder))])  # pyright: ignore
    assert caplog.text.count("no curves: no matplotlib") == 1


def test_another_host_trains_what_is_not_finished_and_leaves_files_to_the_chief(
    tmp_path, monkeypatch, capsys
):
    trained = []

    class Training:
        def __init__(self, job, start, options, folder, seed):
            self.seed = seed

        def run(self):
            trained.append(self.seed)

    monkeypatch.setattr(runs, "is_chief", lambda strategy: False)
    monkeypatch.setattr(runs, "SeedTraining", Training)
    monkeypatch.setattr(runs, "_check_batches", lambda *_: None)
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "run.json").write_text("{}")
    for overwrite, expected in ((False, [2]), (True, [1, 2])):
        trained.clear()
        options = options_of(do_train=True, seeds="1,2", output_dir=tmp_path, overwrite=overwrite)
        with pytest.raises(SystemExit) as ended:
            runs.train_all(None, None, options)  # pyright: ignore
        assert ended.value.code == 0 and trained == expected
    assert "results are written by the chief, worker 0" in capsys.readouterr().out
    assert not (tmp_path / "lock").exists()


def test_the_best_model_is_kept_with_its_adapter(model, tmp_path):
    best, output = tmp_path / "seed-1", tmp_path / "out"
    shutil.copytree(model / "tf", best)
    (best / "adapter").mkdir()
    (best / "adapter" / "weights").write_text("new")
    (output / "adapter").mkdir(parents=True)
    (output / "adapter" / "old").write_text("of another model")
    task = TrainedTask("classification", 7)
    runs._keep_best(task, best, output, adapter=True)
    assert [path.name for path in (output / "adapter").iterdir()] == ["weights"]
    names = {path.name for path in best.iterdir()} - {"adapter"}
    assert names <= {path.name for path in output.iterdir()} and read_trained_task(output) == task
    runs._keep_best(task, best, output, adapter=False)
    assert not (output / "adapter").exists()


def test_what_was_there_goes_where_that_is_asked_for(tmp_path):
    stays = ("vocab.txt", "bert_model.ckpt.index")
    goes = ("run.json", "config.json", "metrics.jsonl", "bert_task.json", "report.html")
    for name in (*stays, *goes):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="bert_model.ckpt.index is of another model"):
        runs._prepare_folder_of_best(tmp_path, overwrite=False)
    runs._prepare_folder_of_best(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == set(stays)
    # The checkpoints of a stopped run of other settings.
    for step in (3, 5):
        (tmp_path / f"model.ckpt-{step}.index").write_text("")
    (tmp_path / "best").mkdir()
    runs._prepare_folder(tmp_path, {"seed": 2}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {*stays, "config.json"}
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 2}


class OneSeed(seed_training.SeedTraining):
    """A run whose loss is not finite; of what it leaves nothing is written."""

    def __init__(self, options, is_chief, folder):
        self.options, self.folder, self.seed = options, folder, 5
        self.best, self.scores, self.steps, self.saved = None, [], 9, []
        self.trainer = types.SimpleNamespace(step=7, is_chief=is_chief, restore=lambda: None)
        self.job = types.SimpleNamespace(selection_metric="accuracy")

    def _make_trainer(self):
        pass

    def _train(self):
        raise NonFiniteLossError("the loss of step 8 is nan")

    def _save_model(self, best_step):
        self.saved.append(best_step)

    def _remove_state(self):
        self.saved.append("state")


@pytest.mark.parametrize("is_chief", [True, False])
def test_a_run_that_diverges_says_so_and_the_chief_keeps_what_it_has(
    tmp_path, monkeypatch, is_chief
):
    called = []
    experimental = seed_training.tf.config.experimental
    monkeypatch.setattr(experimental, "enable_op_determinism", lambda: called.append(1))
    one = OneSeed(options_of(deterministic=is_chief), is_chief, tmp_path)
    run = one.run()
    assert isinstance(run, FineTuningRun) and run.diverged == "the loss of step 8 is nan"
    assert (run.steps, run.best_step, run.figures, run.seed) == (7, 7, {}, 5)
    assert one.saved == ([7, "state"] if is_chief else [])
    assert called == [1] * is_chief


def test_a_stopped_run_takes_up_its_evaluations(tmp_path):
    lines = [{"step": 3, "eval_accuracy": 0.5, "eval_f1": 0.25}, {"step": 6, "eval_accuracy": 0.75}]
    text = "".join(json.dumps({"kind": "eval", **line}) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    one = OneSeed(options_of(keep_best=False), True, tmp_path)
    one._restore_evaluations()
    assert one.best == seed_training._Best(6, {"accuracy": 0.75})
    assert one.scores == [0.5, 0.75]
    one = OneSeed(options_of(keep_best=True), True, tmp_path)
    one._restore_evaluations()
    assert one.best is None
    for step, expected in ((6, 6), (8, None)):  # of a later step: it is trained again
        path = tmp_path / seed_training.BEST_NAME / "best.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"step": step, "figures": {"accuracy": 0.75}}))
        one._restore_evaluations()
        assert (one.best and one.best.step) == expected
