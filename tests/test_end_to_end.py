"""From raw text to a filled-in sentence, through the scripts as a user runs them."""

import gzip
import pathlib
import random

import pytest

from bert_tf import files
from bert_tf.input_pipeline.record_checks import expand_files, manifests_of
from experiments.pretraining import quickstart
from tests.support import object_store, warm_commands

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LENGTH, PREDICTIONS, STEPS = 31, 5, 7


def wiki_extract(path: pathlib.Path) -> None:
    """Write articles as WikiExtractor does, of sentences that a model can learn from."""
    rng = random.Random(5)
    names = ["the cat", "a dog", "Dr. Smith", "the red house", "one small bird"]
    verbs = ["sees", "likes", "does not want", "waits for"]
    articles = []
    for i in range(61):
        sentences = [
            f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(names)}.".capitalize()
            for _ in range(rng.randint(3, 13))
        ]
        articles.append(
            f'<doc id="{i}" url="u?curid={i}" title="Article {i}">\nArticle {i}\n\n'
            f"{' '.join(sentences)}\n\n</doc>\n"
        )
    path.write_bytes(gzip.compress("".join(articles).encode()))


@pytest.mark.timeout(840)  # seven processes, each of which imports TensorFlow on a busy machine
@pytest.mark.parametrize("where", ["folder", pytest.param("store", marks=pytest.mark.slow)])
def test_text_to_filled_sentence(tmp_path, capfd, monkeypatch, where, store):
    """Every path is of a folder of this machine, or every one of an object store."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "copies"))  # of the commands
    wiki_extract(tmp_path / "wiki_00.gz")
    place = str(tmp_path)
    if where == "store":
        place = "bucket://b/deep"
        object_store.put("b/deep/wiki_00.gz", (tmp_path / "wiki_00.gz").read_bytes())

    def step(script, **arguments):
        quickstart.run_step(script, script, **arguments)
        return capfd.readouterr().out

    step(
        "data_prep/extract_corpus.py",
        input_file=f"{place}/wiki_*",
        output_file=f"{place}/train.txt",
        heldout_output_file=f"{place}/heldout.txt",
        heldout_fraction=0.2,
        num_workers=1,
    )
    step(
        "data_prep/learn_vocab.py",
        input_file=f"{place}/train.txt",
        output_file=f"{place}/vocab.txt",
        vocab_size=113,
        num_unused=0,
    )
    for split in ("train", "heldout"):
        step(
            "data_prep/create_pretraining_data.py",
            input_file=f"{place}/{split}.txt",
            output_file=f"{place}/{split}.tfrecord",
            vocab_file=f"{place}/vocab.txt",
            max_seq_length=LENGTH,
            max_predictions_per_seq=PREDICTIONS,
            dupe_factor=2,
            num_workers=1,
        )
    manifest = manifests_of(expand_files(f"{place}/train.tfrecord"))[0]
    assert manifest["counts"]["documents"] > 40

    words = files.read_text(f"{place}/vocab.txt").splitlines()
    config = {
        "vocab_size": len(words),
        "hidden_size": 22,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 37,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 41,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
    }
    files.write_json(f"{place}/bert_config.json", config)
    out = step(
        "experiments/run_pretraining.py",
        input_file=f"{place}/train.tfrecord",
        eval_input_file=f"{place}/heldout.tfrecord",
        bert_config_file=f"{place}/bert_config.json",
        vocab_file=f"{place}/vocab.txt",
        max_seq_length=LENGTH,
        max_predictions_per_seq=PREDICTIONS,
        do_train=True,
        do_eval=True,
        train_batch_size=11,
        eval_batch_size=13,
        max_eval_steps=0,
        learning_rate=1e-3,
        num_train_steps=STEPS,
        num_warmup_steps=2,
        log_steps=2,
        tensorboard=False,
        output_dir=f"{place}/model",
    )
    assert "held-out" in out
    result = files.read_json(f"{place}/model/eval_results.json")
    assert result["global_step"] == STEPS
    metrics = pathlib.Path(files.local_copy(f"{place}/model/metrics.jsonl"))
    base = quickstart.baselines(metrics)
    assert base["unigram_loss"] < base["uniform_loss"]
    # Seven steps of a hundred words: no more than nearer to the data than a uniform guess.
    assert result["masked_lm_loss"] < base["uniform_loss"]

    step(
        "experiments/export_model.py",
        model_dir=f"{place}/model",
        saved_model=f"{place}/fill",
        max_seq_length=LENGTH,
        top_k=3,
    )
    out = step(
        "experiments/fill_mask.py",
        saved_model=files.local_copy(f"{place}/fill"),
        text=["The cat sees [MASK] dog.", "[MASK] [MASK] waits."],
    )
    lines = out.split("The cat sees [MASK] dog.\n", 1)[1].splitlines()
    assert lines[0].startswith("  The cat sees ") and lines[0].endswith(" dog.")
    candidates = lines[1].split()
    assert len(candidates) == 6 and set(candidates[::2]) <= set(words)
    left = [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]
    assert not left, "each command removes its copies"


def test_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    command = ["experiments/quickstart.py", f"--output_dir={tmp_path / 'file'}"]
    done = warm_commands.run(command, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("quickstart: ")


def test_a_remote_output_of_fill_mask_is_refused_before_any_work():
    arguments = ["--saved_model=none", "--text=a [MASK]", "--output_file=gs://b/x"]
    done = warm_commands.run(["experiments/fill_mask.py", *arguments], cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["fill_mask: --output_file: no such folder here: gs://b/x"]
