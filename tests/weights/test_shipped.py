"""The models that come with the package: found by name, whole, and that they have learnt."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors

import bert_tf
from bert_tf.tokenization.packing import pack_pair
from bert_tf.weights.locate import locate
from bert_tf.weights.shipped import shipped_models
from experiments.conversion.verify import fixed_batch, hf_outputs, our_outputs
from tests.support import synthetic_records as synthetic

NAME = "tiny-wikipedia"
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
UNIGRAM = REPOSITORY / "tests/golden/shipped/unigram.json"
FILES = {
    *("README.md", "config.json", "model.safetensors", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
}

SENTENCES = (
    "The city lies on the north bank of the river and has about ten thousand inhabitants.",
    "He was born in London in 1870 and studied law at the university.",
    "The film was released in the United States in 1995 and won two awards.",
    "She played the piano and wrote several books for children.",
    "The war ended in 1945, and many of the soldiers returned to their homes.",
    "The church was built in the 12th century and is one of the oldest in the country.",
    "The species is found in the forests of South America.",
    "The band released its first album in 2001, and it sold a million copies.",
    "The king died in battle and was succeeded by his eldest son.",
    "Most of the people in the region speak French as their first language.",
    "The team won the championship for the third time in a row.",
    "Water is made of hydrogen and oxygen, and it is a liquid at room temperature.",
)
# A text, and one that goes on from it.
PAIRS = (
    (
        "The castle stands on a hill above the town. Its walls were built in the 13th century.",
        "In the 16th century the castle was rebuilt, and two towers were added to its walls.",
    ),
    (
        "The band was formed in 1985 by two students. They recorded their first songs at home.",
        "Their first album was released two years later, and the songs became popular on radio.",
    ),
    (
        "Iron is a metal that is found in many kinds of rock. Pure iron is soft.",
        "When carbon is added to the metal it becomes steel, which is much harder than iron.",
    ),
    (
        "The general led his army across the river. The enemy troops waited on the other side.",
        "The battle lasted two days, and the army lost more than a thousand soldiers.",
    ),
    (
        "The club plays in the first division. It has won the national cup three times.",
        "In the last season the club lost most of its games, and a new coach was hired.",
    ),
    (
        "The bird lives in forests near the coast. It feeds on insects and small fruit.",
        "The female lays two eggs in a nest, and both birds feed the young.",
    ),
    (
        "The party won the election with a large majority. Its leader became prime minister.",
        "The new government passed several laws, but the opposition voted against them.",
    ),
    (
        "The novel tells the story of a young woman. It was written in German in 1901.",
        "Critics praised the book, and the author wrote a second novel with the same characters.",
    ),
    (
        "The disease is caused by a virus. Patients have a fever and pain in the muscles.",
        "There is no treatment for the infection, but a vaccine protects most patients.",
    ),
    (
        "The planet is larger than Earth and has no moon. It orbits a star that is very bright.",
        "Astronomers observed the star with a telescope and measured the mass of the planet.",
    ),
    (
        "The railway was opened in 1870. It connected the port with the capital.",
        "After the war the line was closed, and the stations and tracks were removed.",
    ),
    (
        "He studied physics at the university. In 1905 he wrote a paper on the theory of light.",
        "He became a professor there and received the Nobel Prize for his work in physics.",
    ),
)


@pytest.fixture(scope="module")
def loaded():
    return bert_tf.load_model(NAME)


# === By name ===


def test_the_folder_holds_a_whole_model():
    assert set(shipped_models()) == {NAME}
    folder = shipped_models()[NAME]
    assert {path.name for path in folder.iterdir()} == FILES
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}


def test_weights_are_those_of_the_file_in_float32(loaded):
    checkpoint = bert_tf.weights.open_checkpoint(NAME)
    assert loaded.kind == "pretraining" and not loaded.transfer.missing
    assert {weight.dtype for weight in loaded.model.weights} == {"float32"}
    names = {move.source_name: move.name for move in loaded.transfer.moved}
    assert set(names) == set(checkpoint.source.shapes)
    weights = {weight.path: weight for weight in loaded.model.weights}
    for source_name, array in checkpoint.source.read(list(names)):
        value = weights[names[source_name]].numpy()
        value = value.T if checkpoint.layout.transposed(names[source_name]) else value
        np.testing.assert_array_equal(value.reshape(array.shape), array.astype(np.float32))


def test_each_door_takes_the_name():
    encoder, config, tokenizer = bert_tf.load_bert(NAME)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (2, 128, 8000)
    assert tokenizer.do_lower_case and len(tokenizer.vocab) == 8000
    pieces = ["[CLS]", *tokenizer.tokenize("Hello, world"), "[SEP]"]
    ids = np.array([tokenizer.convert_tokens_to_ids(pieces)])
    batch = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    outputs = encoder(batch)
    assert outputs["pooled_output"].shape == (1, 128)
    classifier = bert_tf.bert_classifier(config, num_labels=3)
    bert_tf.load_checkpoint(classifier, NAME, heads=False)
    np.testing.assert_array_equal(
        classifier.get_layer("bert")(batch)["sequence_output"], outputs["sequence_output"]
    )
    # README's example.
    ((candidates,),) = bert_tf.Predictor(NAME).fill_mask(
        ["The film was released in the United [MASK] in 1995."]
    )
    assert candidates[0][0] == "states"


def test_a_longer_input_than_it_has_positions_for_is_refused():
    encoder, config, _ = bert_tf.load_bert(NAME)
    assert config.max_position_embeddings == 128
    ids = np.ones((1, 129), np.int32)
    with pytest.raises(ValueError, match="has 129 positions, but .* is 128"):
        encoder({"input_ids": ids, "input_mask": ids, "segment_ids": 0 * ids})


def test_what_lies_at_the_path_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(NAME).path == str(shipped_models()[NAME] / "model.safetensors")
    bert_tf.save_hf(NAME, bert_tf.bert_encoder(synthetic.small_config()))
    assert locate(NAME).path == f"{NAME}/model.safetensors"


def test_a_wrong_name_is_told_the_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-wikipeda", f"{NAME}/", f"../shipped_models/{NAME}"):
        with pytest.raises(FileNotFoundError, match=rf"^{name}: no such .* package \({NAME}\)$"):
            locate(name)


def test_finding_it_loads_neither_tensorflow_nor_keras():
    code = (
        f"import sys; from bert_tf.weights.locate import locate; locate({NAME!r}); "
        "sys.exit(','.join({'tensorflow', 'keras'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transformers_reads_its_folder(loaded):
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder, batch = str(shipped_models()[NAME]), fixed_batch(loaded.config, loaded.kind)
    theirs, ours = hf_outputs(folder, loaded.kind, True, batch), our_outputs(loaded.model, batch)
    assert theirs.keys() == ours.keys() == {"masked_lm_logits", "next_sentence_logits"}
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-4, err_msg=name)


def test_the_wheel_holds_it(tmp_path):
    """What setuptools takes into a wheel; .ci/try-wheel installs one."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    command = [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}"]
    done = subprocess.run(
        [*command, "build_py", f"--build-lib={tmp_path}"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "bert_tf/weights/shipped_models" / NAME
    assert {path.name for path in folder.iterdir()} == FILES


# === What it has learnt ===


def test_hidden_words_are_told_from_their_context(loaded):
    """Each piece of a sentence hidden in turn, beside what a unigram model of its text says."""
    unigram = json.loads(UNIGRAM.read_text(encoding="utf-8"))
    losses, unigram_losses, right = [], [], []
    for sentence in SENTENCES:
        pieces = loaded.tokenizer.tokenize(sentence)
        ids = loaded.tokenizer.convert_tokens_to_ids(["[CLS]", *pieces, "[SEP]"])
        batch, places = np.tile(ids, (len(pieces), 1)), np.arange(1, len(pieces) + 1)
        hidden = batch[places - 1, places].copy()
        batch[places - 1, places] = loaded.tokenizer.vocab["[MASK]"]
        outputs = loaded.model(
            {
                "input_ids": batch,
                "input_mask": np.ones_like(batch),
                "segment_ids": np.zeros_like(batch),
                "masked_lm_positions": places[:, None],
            }
        )
        logits = keras.ops.convert_to_numpy(outputs["masked_lm_logits"])[:, 0].astype(np.float64)
        scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        losses += list(-scores[places - 1, hidden])
        right += list(scores.argmax(-1) == hidden)
        counts = np.array([unigram["counts"][piece] for piece in pieces])
        unigram_losses += list(-np.log(counts / unigram["pieces"]))
    print(f"{len(losses)} hidden pieces: {np.mean(losses):.3f} nats, {np.mean(right):.1%} right")
    print(f"a unigram model: {np.mean(unigram_losses):.3f} nats")
    assert np.mean(losses) < np.mean(unigram_losses) - 1.5
    assert np.mean(right) > 0.2


def test_following_text_is_told_from_other_text(loaded):
    vocab, encode = loaded.tokenizer.vocab, loaded.tokenizer.encode
    ends = {"cls_id": vocab["[CLS]"], "sep_id": vocab["[SEP]"]}

    def is_next(pairs):
        """Return the logit of "follows" above that of "does not"."""
        rows = [pack_pair(*map(encode, pair), 128, **ends) for pair in pairs]
        names = ("input_ids", "input_mask", "segment_ids")
        batch = {
            name: np.array(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)
        }
        batch["masked_lm_positions"] = np.zeros([len(rows), 1], np.int32)
        logits = keras.ops.convert_to_numpy(loaded.model(batch)["next_sentence_logits"])
        return logits[:, 0] - logits[:, 1]

    firsts, seconds = zip(*PAIRS, strict=True)
    scores = is_next([(a, b) for a in firsts for b in seconds]).reshape(len(PAIRS), len(PAIRS))
    own = np.eye(len(PAIRS), dtype=bool)
    # How often the text that follows is likelier than that of another pair; by chance, half.
    ranked = (scores[own][:, None] > scores)[~own].mean()
    print(f"{ranked:.1%} ranked right; follows: {(scores[own] > 0).sum()} of {len(PAIRS)}")
    assert ranked > 0.75
