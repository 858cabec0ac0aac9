"""Answers to strings are what the Keras model gives for the Python tokenizer, row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bert_tf
from bert_tf.models.encoder import layer_outputs
from bert_tf.models.task_models import HEADS
from bert_tf.serving.half_precision import StoredWeights
from bert_tf.serving.load import load_served_model
from bert_tf.serving.text_models import (
    Classifier,
    Embedder,
    FillMask,
    MultiLabelClassifier,
    MultipleChoice,
    NextSentence,
    Regressor,
)
from bert_tf.tasks.document_windows import TextRule
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.packing import pack_pair
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.save import save_model_directory
from tests.support import synthetic_records as synthetic

WORDS = (
    "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . [ ] "
    "mask true caf ##e"
).split()
LENGTH = 17
CONFIG = synthetic.small_config(vocab_size=len(WORDS), initializer_range=0.7)
TEXTS = [
    "The café is empty.",
    "",
    "the " * 50,
    "\U0001f600 true",
    b"items\xff of list",
    "lists, true",
]
OTHERS = ["", "Items.", "is empty " * 9, "return", "true [MASK]", "the list"]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(word + "\n" for word in WORDS))
    return path


@pytest.fixture(scope="module")
def text_to_ids(vocab_file):
    return TextToIds(vocab_file, max_seq_length=LENGTH)


def outputs_of(model, vocab_file, texts, others=None):
    """Return the model's outputs for each row by itself, by way of the Python tokenizer."""
    tokenizer = FullTokenizer(vocab_file)
    special = {f"{name.lower()}_id": tokenizer.vocab[f"[{name}]"] for name in ("CLS", "SEP", "PAD")}
    rows = []
    for text, other in zip(texts, others or [None] * len(texts), strict=True):
        second = None if other is None else tokenizer.encode(other)
        packed = pack_pair(tokenizer.encode(text), second, LENGTH, **special)
        names = ("input_ids", "input_mask", "segment_ids")
        inputs = {n: np.array([row], np.int32) for n, row in zip(names, packed, strict=True)}
        rows.append(model.predict_on_batch(inputs))
    return rows


def made(kind, *arguments):
    keras.utils.set_random_seed(7)
    return HEADS[kind].make(CONFIG, *arguments)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("has_pairs", [False, True])
def test_classification(vocab_file, text_to_ids, has_pairs):
    model = made("classification", 3)
    served = Classifier(model, text_to_ids, ("no", "maybe", "yes"), has_pairs=has_pairs)
    given = (TEXTS, OTHERS) if has_pairs else (TEXTS,)
    found = served.answer(*map(tf.constant, given))
    expected = softmax(np.concatenate(outputs_of(model, vocab_file, *given)))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    names = [b"no", b"maybe", b"yes"]
    assert found["labels"].numpy().tolist() == [names] * len(TEXTS)
    assert found["label"].numpy().tolist() == [names[i] for i in expected.argmax(-1)]
    features = [
        {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[_bytes(text)]))
            for name, text in zip(served.texts, row, strict=True)
        }
        for row in zip(*given, strict=True)
    ]
    examples = [
        tf.train.Example(features=tf.train.Features(feature=row)).SerializeToString()
        for row in features
    ]
    answered = served.signatures()["classify"](tf.constant(examples))
    np.testing.assert_allclose(answered["scores"], expected, atol=1e-5)
    assert answered["classes"].numpy().tolist() == [names] * len(TEXTS)


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def test_several_labels_and_numbers(vocab_file, text_to_ids):
    model = made("classification", 3)
    served = MultiLabelClassifier(model, text_to_ids, ("a", "b", "c"))
    found = served.answer(tf.constant(TEXTS))
    logits = np.concatenate(outputs_of(model, vocab_file, TEXTS))
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert found["is_label"].numpy().tolist() == (logits > 0).tolist()
    assert served.descriptions["is_label"] == "whether it is at least one half"
    model = made("classification", 1)
    regressor = Regressor(model, text_to_ids, has_pairs=True)
    found = regressor.answer(tf.constant(TEXTS), tf.constant(OTHERS))
    values = np.concatenate(outputs_of(model, vocab_file, TEXTS, OTHERS))[:, 0]
    np.testing.assert_allclose(found["value"], values, atol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_temperature_and_thresholds_of_a_model_directory(vocab_file, tmp_path, kind):
    model = made("classification", 2)
    save_model_directory(tmp_path, model, vocab_file, labels=("no", "yes"))
    logits = np.concatenate(outputs_of(model, vocab_file, TEXTS))
    probabilities = (
        softmax(logits / 1.75) if kind == "classification" else 1 / (1 + np.exp(-logits / 1.75))
    )
    # Each between the probabilities of some texts.
    chosen = [(np.sort(column)[1:3].mean()).item() for column in probabilities.T]
    more = {"thresholds": tuple(chosen)} if kind == "multi_label" else {}
    TrainedTask(kind, LENGTH, temperature=1.75, **more).write(tmp_path)
    served = load_served_model(tmp_path)
    found = served.answer(tf.constant(TEXTS))
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    about = served.descriptions
    assert about["probabilities"].endswith("; calibrated by the temperature 1.75")
    if kind == "multi_label":
        assert found["is_label"].numpy().tolist() == (probabilities > chosen).tolist()
        assert found["is_label"].numpy().sum(axis=0).tolist() == [len(TEXTS) - 2] * 2
        assert about["is_label"].endswith(f": no {chosen[0]:.3g}, yes {chosen[1]:.3g}")
        with pytest.raises(ValueError, match="thresholds: expected 2, one for each label, got 1"):
            MultiLabelClassifier(model, served.text_to_ids, "ab", thresholds=(0.5,))
        with pytest.raises(ValueError, match="thresholds: expected numbers between 0 and 1"):
            MultiLabelClassifier(model, served.text_to_ids, "ab", thresholds=(0.5, 1))
        return
    # What is read as logits is at the temperature too.
    ids = {"input_ids": [[3, 6, 4]], "input_mask": [[1, 1, 1]], "segment_ids": [[0, 0, 0]]}
    ids = {name: tf.constant(value, tf.int32) for name, value in ids.items()}
    expected = model.predict_on_batch({name: value.numpy() for name, value in ids.items()}) / 1.75
    np.testing.assert_allclose(served.ids(**ids)["logits"], expected, atol=1e-5)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature: expected a number above 0, got"):
            Classifier(model, served.text_to_ids, "ab", temperature=temperature)


def test_next_sentence(vocab_file, text_to_ids):
    model = made("next_sentence")
    served = NextSentence(model, text_to_ids)
    assert not {"classify", "regress"} & set(served.signatures())  # as it is neither for TF Serving
    found = served.answer(tf.constant(TEXTS), tf.constant(OTHERS))
    expected = softmax(np.concatenate(outputs_of(model, vocab_file, TEXTS, OTHERS)))[:, 0]
    np.testing.assert_allclose(found["is_next"], expected, atol=1e-5)


def test_choices(vocab_file, text_to_ids):
    model = made("multiple_choice")
    served = MultipleChoice(model, text_to_ids)
    choices = [OTHERS[i : i + 3] for i in range(3)]
    found = served.answer(tf.constant(TEXTS[:3]), tf.constant(choices))
    tokenizer = FullTokenizer(vocab_file)
    special = {f"{name.lower()}_id": tokenizer.vocab[f"[{name}]"] for name in ("CLS", "SEP", "PAD")}
    for row, (text, others) in enumerate(zip(TEXTS, choices, strict=False)):
        packed = [
            pack_pair(tokenizer.encode(text), tokenizer.encode(other), LENGTH, **special)
            for other in others
        ]
        arrays = np.array(packed, np.int32)  # [C, 3, L]
        names = ("input_ids", "input_mask", "segment_ids")
        logits = model.predict_on_batch({n: arrays[None, :, i] for i, n in enumerate(names)})[0]
        np.testing.assert_allclose(found["probabilities"][row], softmax(logits), atol=1e-5)
        assert found["choice"][row] == logits.argmax()


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_embeddings(vocab_file, text_to_ids, layer):
    keras.utils.set_random_seed(7)
    model = bert_tf.bert_encoder(CONFIG, hidden_states=True)
    served = Embedder(model, text_to_ids, layer=layer)
    assert Embedder(model, text_to_ids).layer == -1
    found = served.answer(tf.constant(TEXTS))
    tokenizer = FullTokenizer(vocab_file)
    for row, outputs in enumerate(outputs_of(model, vocab_file, TEXTS)):
        count = min(len(tokenizer.encode(TEXTS[row])), LENGTH - 2) + 2
        mean = np.asarray(layer_outputs(outputs, "hidden_states")[layer])[0, :count].mean(0)
        np.testing.assert_allclose(found["mean"][row], mean, atol=1e-5)
        np.testing.assert_allclose(found["pooled"][row], outputs["pooled_output"][0], atol=1e-5)


def test_pieces_are_those_of_the_python_tokenizer(vocab_file):
    text_to_ids = TextToIds(vocab_file, max_seq_length=LENGTH, parse_mask=True)
    served = FillMask(made("pretraining"), text_to_ids, top_k=3)
    texts = [*TEXTS, "Cafe\u0301s [MASK], \U0001f600?"]
    found = {name: value.numpy() for name, value in served.pieces(tf.constant(texts)).items()}
    tokenizer = FullTokenizer(vocab_file, parse_special_tokens=True)
    for row, text in enumerate(texts):
        pieces, places = tokenizer.tokenize_with_offsets(text)
        count = found["piece_count"][row]
        assert [piece.decode() for piece in found["pieces"][row, :count]] == pieces
        starts, ends = found["char_starts"][row, :count], found["char_ends"][row, :count]
        assert [*zip(starts, ends, strict=True)] == places
        assert not found["pieces"][row, count:].any()
    assert found["piece_count"].tolist()[:3] == [6, 0, 50]


def all_served(text_to_ids, vocab_file):
    masked = TextToIds(vocab_file, max_seq_length=LENGTH, parse_mask=True)
    return [
        FillMask(made("pretraining"), masked, top_k=3),
        Classifier(made("classification", 2), text_to_ids, ("a", "b")),
        MultipleChoice(made("multiple_choice"), text_to_ids),
        Embedder(made("encoder"), text_to_ids),
        NextSentence(made("next_sentence"), text_to_ids),
    ]


@pytest.mark.slow
def test_a_vocabulary_of_another_model_is_told(caplog):
    model = made("classification", 2)
    vocab = {word: i for i, word in enumerate(WORDS)}
    Classifier(model, TextToIds.from_vocab(vocab, max_seq_length=LENGTH), ("a", "b"))
    assert not caplog.text
    vocab = {word.upper() if word.isalpha() else word: i for i, word in enumerate(WORDS[:-4])}
    Classifier(model, TextToIds.from_vocab(vocab, True, LENGTH), ("a", "b"))
    assert f"has {len(WORDS) - 4} pieces, the model embeddings for {len(WORDS)}" in caplog.text
    assert "pieces have capital letters" in caplog.text


def test_no_texts_and_long_ones(text_to_ids, vocab_file):
    long = "the café, \U0001f600 is " * 10_000
    for served in all_served(text_to_ids, vocab_file):
        example = {name: tf.constant(value) for name, value in served.example.items()}
        expected = served.answer(**example)
        none = served.answer(**{name: value[:0] for name, value in example.items()})
        for name, value in none.items():
            assert value.shape[0] == 0 and value.dtype == expected[name].dtype, served.task
        if "choices" in example:
            continue
        # One row of 100,000 characters changes nothing in the others.
        both = {name: tf.concat([value, [long]], 0) for name, value in example.items()}
        for name, value in served.answer(**both).items():
            if value.dtype == tf.float32:
                np.testing.assert_allclose(value[:1], expected[name], atol=1e-5)
            assert value.shape[0] == 2


def test_only_the_beginning_of_a_long_text_is_tokenized(vocab_file, monkeypatch):
    model, text_to_ids = made("classification", 3), TextToIds(vocab_file, max_seq_length=LENGTH)
    served = Classifier(model, text_to_ids, ("no", "maybe", "yes"), has_pairs=True)
    # Words so long that each is one [UNK]: these are seen to the last that fits.
    texts = ["x" * 3000 + " the " + "y" * 3000 + " list", "the list " * 100_000]
    others = ["items " + "\u0e01" * 1000 + " is empty", "\u00e9" * 500_000]
    expected = softmax(np.concatenate(outputs_of(model, vocab_file, texts, others)))
    found = served.answer(tf.constant(texts), tf.constant(others))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    sizes, pack = [], TextToIds.pack

    def measured(self, *texts):
        sizes.extend(len(text) for column in texts for text in column.numpy())
        return pack(self, *texts)

    monkeypatch.setattr(TextToIds, "pack", measured)
    tf.config.run_functions_eagerly(True)
    try:
        served.answer(tf.constant(texts), tf.constant(others))
    finally:
        tf.config.run_functions_eagerly(False)
    assert sizes == [len(texts[0]), 4096 * LENGTH, len(others[0].encode()), 4096 * LENGTH]


def test_what_does_not_fit_is_refused(text_to_ids, vocab_file, tmp_path):
    model = made("classification", 3)
    with pytest.raises(ValueError, match="labels: the model has 3, got 2: a, b"):
        Classifier(model, text_to_ids, ("a", "b"))
    with pytest.raises(ValueError, match="windows: expected None, got TextRule"):
        Classifier(model, text_to_ids, "abc", windows=TextRule(LENGTH, 3))
    of_windows = HEADS["classification"].make(CONFIG, 3, window_pooling="max")
    with pytest.raises(ValueError, match="windows: expected a TextRule, as the model reads texts"):
        Classifier(of_windows, text_to_ids, "abc")
    with pytest.raises(ValueError, match=f"windows: expected max_seq_length {LENGTH} and has_pair"):
        Classifier(of_windows, text_to_ids, "abc", windows=TextRule(LENGTH - 1, 3))
    with pytest.raises(ValueError, match="a regression has one output, this model 3"):
        Regressor(model, text_to_ids)
    with pytest.raises(ValueError, match="max_seq_length: the model has 41 positions, got 43"):
        Classifier(model, TextToIds(vocab_file, max_seq_length=43), "abc")
    path = tmp_path / "more.txt"
    path.write_text("".join(f"{word}\n" for word in [*WORDS, "more"]))
    with pytest.raises(ValueError, match=f"has {len(WORDS) + 1} pieces, the model a vocabulary of"):
        Classifier(model, TextToIds(path, max_seq_length=13), "abc")
    with pytest.raises(ValueError, match="layer: make the encoder with hidden_states=True"):
        Embedder(made("encoder"), text_to_ids, layer=0)
    with pytest.raises(ValueError, match=f"layer: expected 0 to {CONFIG.num_hidden_layers}, got 9"):
        Embedder(bert_tf.bert_encoder(CONFIG, hidden_states=True), text_to_ids, layer=9)
    with pytest.raises(ValueError, match="dtype: expected one of .*bfloat16.*, got 'int8'"):
        StoredWeights(model.variables, "int8")
    with pytest.raises(ValueError, match="expected parse_mask"):
        FillMask(made("pretraining"), text_to_ids)


@pytest.mark.parametrize("kind", ["classification", "multi_label"])
def test_a_model_directory_says_what_it_is_for(vocab_file, tmp_path, kind):
    model = made("classification", 2)
    save_model_directory(tmp_path, model, vocab_file, labels=("no", "yes"))
    plain = load_served_model(tmp_path)
    assert type(plain) is Classifier and plain.texts == ("text",)
    assert plain.text_to_ids.max_seq_length == CONFIG.max_position_embeddings
    with pytest.raises(ValueError, match="max_windows: the model reads texts as one sequence each"):
        load_served_model(tmp_path, max_windows=3)
    in_memory = load_served_model(model, vocab_file=str(vocab_file), labels=("no", "yes"))
    assert type(in_memory) is Classifier and in_memory.label_names == ("no", "yes")
    TrainedTask(kind, 13, has_pairs=True).write(tmp_path)
    served = load_served_model(tmp_path)
    assert served.task == kind and served.texts == ("text", "text_b")
    assert served.text_to_ids.max_seq_length == 13
    found = served.answer(tf.constant(TEXTS), tf.constant(OTHERS))
    assert found["labels"][0].numpy().tolist() == [b"no", b"yes"]
    other = "multi_label" if kind == "classification" else "classification"
    with pytest.raises(ValueError, match=f"trained for {kind}, not for {other}"):
        load_served_model(tmp_path, task=other)
    with pytest.raises(ValueError, match="task: expected one of fill_mask, .*, got 'x'"):
        load_served_model(tmp_path, task="x")
