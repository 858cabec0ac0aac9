"""The script that trains vectors of texts: what it learns, writes and refuses."""

import csv
import json
import random

import numpy as np
import pytest

import bert_tf
from bert_tf.models.task_models import HEADS
from bert_tf.serving.load import load_served_model
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.tasks.retrieval_metrics import retrieval_scores
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.weights.save import save_model_directory
from experiments import run_embeddings
from experiments.command_line.exit_status import InputError
from experiments.finetuning import embeddings
from experiments.finetuning.initial_model import initial_model
from experiments.finetuning.options import EmbeddingOptions
from tests.support import command_options
from tests.support import synthetic_records as synthetic

TOPICS = 17
TEXTS = ["w3 w4 w5", "w40", "w7 w8 w9 w3 w10 w11 w12"]


def text_of(topic, rng, words=(0, 1, 2)):
    """Return two words of a topic's five."""
    return " ".join(f"w{5 * topic + i}" for i in rng.sample(words, 2))


def partner_of(topic, rng):
    """Return words of a topic, none of which is in its first texts: only learning joins them."""
    return text_of(topic, rng, (3, 4))


def other_than(topic, rng):
    return rng.choice([other for other in range(TOPICS) if other != topic])


def write_pairs(path, count, seed, columns=("text", "partner", "negative")):
    """Write pairs of one topic; a third of them with a negative, of another."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for number in range(count):
            topic = number % TOPICS
            negative = "" if number % 3 else partner_of(other_than(topic, rng), rng)
            values = text_of(topic, rng), partner_of(topic, rng), negative
            writer.writerow(values[: len(columns)])


def write_sts(path, count, seed):
    """Write pairs as STS-B's official files have them: of one topic, score 5, or of two, 0."""
    rng = random.Random(seed)
    lines = ["index\tsentence1\tsentence2\tscore"]
    for number in range(count):
        topic, score = rng.randrange(TOPICS), 5 * rng.randrange(2)
        partner = partner_of(topic if score else other_than(topic, rng), rng)
        lines.append(f"{number}\t{text_of(topic, rng)}\t{partner}\t{score}")
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder / "pairs.csv", 149, 1)
    write_pairs(folder / "dev.csv", TOPICS, 2, ("text", "partner"))
    for number, (split, count) in enumerate((("train", 211), ("dev", 67))):
        write_sts(folder / f"{split}.tsv", count, number)
    synthetic.write_vocabulary(folder / "vocab.txt")
    config = synthetic.small_config(num_hidden_layers=1)
    config.to_json_file(folder / "bert_config.json")
    return folder


def parsed(**given):
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return command_options.parse(EmbeddingOptions, arguments, **run_embeddings.DEFAULTS)


def given_of(data, output, **changes):
    return {
        "train_file": data / "pairs.csv",
        "dev_file": data / "dev.csv",
        "text_column": "text",
        "text_b_column": "partner",
        "bert_config_file": data / "bert_config.json",
        "vocab_file": data / "vocab.txt",
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "max_seq_length": 11,
        "learning_rate": 1e-2,
        "train_batch_size": 13,
        "num_train_epochs": 4,
        "eval_batch_size": 31,
        "pad_to_max_seq_length": True,  # one shape to compile
        **changes,
    }


def run(data, output, **changes):
    embeddings.run(parsed(**given_of(data, output, **changes)))
    path = output / "eval_results.json"
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "pairs"
    test = {"test_file": data / "dev.csv", "do_predict": True}
    run(data, output, negative_columns="negative", pooling="max", **test)
    return output


def test_pairs_find_each_other(trained):
    found = json.loads((trained / "eval_results.json").read_text())
    names = ("mrr_at_10", "ndcg_at_10", "recall_at_1", "recall_at_10")
    assert {f"eval_{name}" for name in names} < found.keys()
    assert found["eval_mrr_at_10"] > 0.8  # by chance 0.17
    settings = json.loads((trained / "config.json").read_text())
    assert settings["pooling"] == "max" and settings["scale"] == 20.0
    assert (trained / "curves.png").exists()
    rows = list(csv.DictReader((trained / "predictions.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [str(number + 2) for number in range(TOPICS)]
    assert np.mean([float(row["cosine"]) for row in rows]) > 0.5


def test_every_way_to_the_model_has_the_same_vectors(data, trained, tmp_path):
    expected = TrainedTask("retrieval", max_seq_length=11, pooling="max", normalize=True)
    assert read_trained_task(trained) == expected
    vectors = bert_tf.Predictor(trained).embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-6)
    # By hand, of the states.
    encoder, _, tokenizer = bert_tf.load_bert(trained)
    assert tokenizer is not None
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer.convert_tokens_to_ids(["[CLS]", *tokenizer.tokenize(text), "[SEP]"])
        inputs = {"input_ids": np.array([ids]), "input_mask": np.ones((1, len(ids)), int)}
        states = encoder({**inputs, "segment_ids": np.zeros((1, len(ids)), int)})
        state = np.asarray(states["sequence_output"])[0].max(axis=0)
        np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=2e-6)
    folder = trained / "sentence_transformers"
    assert json.loads((folder / "modules.json").read_text())[2]["path"] == "2_Normalize"
    np.testing.assert_allclose(bert_tf.Predictor(folder).embed(TEXTS), vectors, atol=1e-6)
    export_saved_model(load_served_model(trained), tmp_path)
    served = bert_tf.Predictor(tmp_path)
    assert served.task == "embeddings"
    np.testing.assert_allclose(served.embed(TEXTS), vectors, atol=1e-6)
    with pytest.raises(ValueError, match="output: expected one of .*mean.*, got 'pooled'"):
        served.embed(TEXTS, "pooled")


def test_the_model_that_training_left_is_evaluated(data, trained, tmp_path, capsys):
    """As the original's commands give --init_checkpoint with and without --do_train."""
    model = HEADS["encoder"].make(synthetic.small_config(num_hidden_layers=1))
    save_model_directory(tmp_path, model)
    before = json.loads((trained / "eval_results.json").read_text())
    given = {"do_train": False, "init_checkpoint": tmp_path / "bert_model.ckpt"}
    assert run(data, trained, **given) == pytest.approx(before, abs=1e-6)
    printed = capsys.readouterr().out
    assert f"{trained}: its fine-tuned model is used, as " in printed
    options = parsed(**given_of(data, trained, do_train=False, init_checkpoint=tmp_path))
    used, is_own = embeddings.used_model(options, initial_model(options))
    assert is_own and used.weights_path == trained / "bert_model.ckpt"
    # One that was trained for vectors is itself what is meant.
    options = parsed(**given_of(data, trained, do_train=False, init_checkpoint=trained))
    assert not embeddings.used_model(options, initial_model(options))[1]


def test_a_finished_run_is_not_trained_again(data, trained, capsys):
    before = json.loads((trained / "eval_results.json").read_text())
    changes = {"negative_columns": "negative", "pooling": "max"}
    assert run(data, trained, **changes) == before
    assert "seed 12345: is finished" in capsys.readouterr().out
    # Its pooling is known; the folder is a model by itself.
    none = {"do_train": False, "train_file": None, "bert_config_file": None, "vocab_file": None}
    assert run(data, trained, **none) == pytest.approx(before, abs=1e-6)
    with pytest.raises(InputError, match="holds a run with scale 20.0, and now it is 7.0"):
        run(data, trained, scale=7, **changes)


OFFICIAL = {
    **dict.fromkeys(("train_file", "dev_file", "text_column", "text_b_column")),
    "task_name": "STS-B",
}


@pytest.mark.thorough(traced=True)
def test_scores_are_followed(data, tmp_path):
    # At the others' rate what is learnt hangs on the processor's last digits.
    changes = {"num_train_epochs": 5, "learning_rate": 3e-3, "data_dir": data}
    changes["sentence_transformers"] = False
    former = tmp_path / "sentence_transformers"
    former.mkdir()
    for name in ("modules.json", "model.safetensors"):
        (former / name).write_text("of a former model")
    found = run(data, tmp_path, **OFFICIAL, **changes)
    assert found["eval_spearman_correlation"] > 0.7  # by chance 0
    assert found["eval_loss"] < 0.15  # of a constant 0.25
    trained = read_trained_task(tmp_path)
    assert trained is not None
    assert (trained.kind, trained.pooling, trained.normalize) == ("similarity", "mean", True)
    assert not former.exists()


def test_a_text_on_both_sides_is_sought_among_the_others():
    """As in training, where what equals a text is no negative of it."""
    search = embeddings._Search.of(np.array([[7, 5], [5, 7], [3, 5]]))
    vectors = {7: [1, 0.0], 5: [1, 0.1], 3: [1, 0.2]}  # each alike most to itself, then its partner
    ids = np.array([[7, 5], [5, 7], [3, 5]])
    queries = np.array([vectors[i] for i in ids[search.queries, 0]])
    documents = np.array([vectors[i] for i in ids[search.documents, 1]])
    found = retrieval_scores(queries, documents, search.relevant, search.own)
    assert set(found.values()) == {1.0}
    assert retrieval_scores(queries, documents, search.relevant)["recall_at_1"] == 1 / 3
    # A text that is its own partner is found.
    search = embeddings._Search.of(np.array([[7, 7], [5, 3]]))
    found = retrieval_scores(np.eye(2), np.eye(2), search.relevant, search.own)
    assert found["recall_at_1"] == 1


def test_the_highest_score_is_of_tables_alone(data, tmp_path):
    changes = {"train_file": data / "x.csv", "text_column": "a", "text_b_column": "b"}
    changes |= {"label_column": "s", "max_score": 1, "data_dir": data}
    (data / "x.csv").write_text("a,b,s\nw1,w2,0.5\n")
    options = parsed(**given_of(data, tmp_path, **{**OFFICIAL, **changes}))
    for part, expected in (("train", 1), ("dev", 5)):
        kind, source = embeddings.find_source(options, part)
        assert (kind, source.settings["max_score"]) == ("similarity", expected)
    with pytest.raises(InputError, match="max_score: is of tables of your own, and no file is na"):
        run(data, tmp_path, **OFFICIAL, data_dir=data, max_score=4)


def test_texts_alone_find_themselves(data, tmp_path, capsys):
    """One's own texts to learn from, official pairs to measure on."""
    changes = {"train_file": data / "pairs.csv", "text_column": "text", "data_dir": data}
    changes |= {"num_train_epochs": 1, "log_steps": 1}
    found = run(data, tmp_path, **{**OFFICIAL, **changes})
    printed = capsys.readouterr().out
    assert "learns from dropout" in printed
    rows = (data / "pairs.csv").read_text().splitlines()[1:]
    different = len({row.split(",")[0] for row in rows})
    assert f"train: {different} examples" in printed
    assert "each text seeks its partner among the 13 of its batch" in printed
    assert "eval_spearman_correlation" in found
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("accuracy", 0) for line in log) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_column": None}, "text_column: needed to read tables of your own"),
        ({"text_b_column": None}, "text_b_column: needed, for the dev file is of pairs"),
        ({"objective": "scores"}, "label_column: needed for --objective=scores"),
        ({"train_file": None}, "train_file: needed, or --task_name and --data_dir"),
        ({"dev_file": None}, "dev_file: needed, or --task_name and --data_dir"),
        ({"task_name": "STS-B"}, "data_dir: needed with --task_name"),
        ({"data_dir": "."}, "task_name: needed with --data_dir"),
        ({"bilstm": True}, "bilstm: is no part of a sentence encoder"),
        ({"train_batch_size": 1}, "train_batch_size: a text finds its partner among those of its "),
        ({"train_batch_sizes": "13,1"}, "train_batch_sizes: .* which would be 1 of 1 in 1 parts"),
        (
            {"train_batch_size": 8, "gradient_accumulation_steps": 8},
            "train_batch_size: .* which would be 1 of 8 in 8 parts",
        ),
        (
            {"objective": "dropout", "negative_columns": "negative"},
            "negative_columns: are for pairs, got --objective=dropout",
        ),
        ({"label_column": "score,text_b"}, "label_column: expected one, got score, text_b"),
        ({"negative_columns": "x"}, "line 1: no column 'x'; the file has text, partner, negative"),
        ({"pooling": "sum"}, "should be one of"),
        ({"scale": 0}, "scale: expected above 0"),
    ],
)
def test_what_is_refused(data, tmp_path, changes, message):
    with pytest.raises(Exception, match=message) as error:  # absl has an error of its own
        run(data, tmp_path, **changes)
    assert type(error.value).__name__ in ("InputError", "ValueError", "IllegalFlagValueError")


def test_pairs_are_not_learned_from_scores_of_official_data(data, tmp_path):
    with pytest.raises(InputError, match="objective: STS-B has scores of pairs that may not"):
        run(data, tmp_path, objective="pairs", **OFFICIAL, data_dir=data)


def test_a_model_without_dropout_cannot_learn_from_texts_alone(data, tmp_path):
    config = synthetic.small_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.to_json_file(tmp_path / "bert_config.json")
    changes = {"bert_config_file": tmp_path / "bert_config.json", "objective": "dropout"}
    with pytest.raises(InputError, match="objective: the model has no dropout, .* set hidden_drop"):
        run(data, tmp_path / "out", **changes)
