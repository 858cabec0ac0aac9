"""New words: which, where they go, and what the tokenizers and weights make of them."""

import collections
import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import to_numpy, weights_by_name
from bert_tf.serving.sentence_transformers import save_sentence_transformers
from bert_tf.tasks.sentence_transformers import read_sentence_transformers
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.load import load_model
from bert_tf.weights.locate import locate
from bert_tf.weights.new_words import load_with_new_words
from bert_tf.weights.save import save_hf, save_keras, save_model_directory
from data_prep.corpus import extended_model
from data_prep.corpus.new_words import (
    CommandOptions,
    add_to_lines,
    extended,
    find_new_words,
    read_new_words,
    refusal,
    run,
    text_cost,
)
from data_prep.corpus.vocabulary import count_words, special_pieces
from tests.support import synthetic_records as synthetic

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [
    *special_pieces(5),
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *("the", "patient", "has", "myo", "##card", "##ial", "in", "##far", "##ction", "."),
]
TEXT = "The patient has myocardial infarction.\nmyocardial tissue\n" * 3 + "The infarction\n"
CONFIG = synthetic.small_config(
    vocab_size=len(PIECES), num_hidden_layers=1, max_position_embeddings=17
)


@pytest.fixture
def vocab_file(tmp_path) -> pathlib.Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES))
    return path


@pytest.fixture
def tokenizer(vocab_file) -> FullTokenizer:
    return FullTokenizer(vocab_file)


# === Which words ===


def test_words_that_cost_most_are_found(tokenizer):
    counts = collections.Counter(
        {
            "myocardial": 9,  # myo ##card ##ial: 9 * 2
            "infarction": 5,  # in ##far ##ction: 5 * 2
            "tissue": 3,  # six letters: 3 * 5
            "patient": 90,  # one piece
            "zq": 9,  # 9 * 1
            "qz": 2,  # too few
            "日": 50,  # [UNK]
        }
    )
    found = find_new_words(counts, tokenizer, 9, min_frequency=3)
    assert found.words == ("myocardial", "tissue", "infarction", "zq")
    assert find_new_words(counts, tokenizer, 2, min_frequency=3).words == ("myocardial", "tissue")


def test_numbers_are_not_found():
    vocab = {piece: i for i, piece in enumerate([*PIECES, *"12", "##1", "##2"])}
    counts = {"1212": 50, "12b": 2}
    assert find_new_words(counts, FullTokenizer.from_vocab(vocab), 9, 1).words == ("12b",)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("patient", "already"),
        ("Myocardial", "lower case"),
        ("naïve", "accents stripped"),
        ("heart attack", "cut before"),
        ("t-cell", "cut before"),
        ("心脏", "cut before"),
        ("##cardium", "cut before"),
        ("[DRUG]", "cut before"),
        ("a\u200bb", "control characters"),
        ("x" * 201, "longer than 200"),
        ("myocardial", None),
        ("x" * 200, None),
        ("ß", None),
    ],
)
def test_words_that_are_never_one_piece_are_refused(tokenizer, word, reason):
    told = refusal(word, tokenizer)
    assert (told is None) if reason is None else (reason in told)
    if reason not in (None, "already"):
        # Were it added all the same, text would not become it.
        forced = FullTokenizer.from_vocab({**tokenizer.vocab, word: 999})
        assert forced.tokenize(f"the {word}") != ["the", word]


def test_what_a_cased_vocabulary_that_keeps_accents_takes(tokenizer):
    cased = FullTokenizer.from_vocab(tokenizer.vocab, False)
    assert refusal("Naïve", cased) is None


def test_a_list_is_read_and_what_cannot_be_added_is_counted(
    tmp_path, tokenizer, vocab_file, capsys
):
    path = tmp_path / "words.txt"
    path.write_text("\ufeffmyocardial\n\n patient \nInfarction\nmyocardial\ninfarction\nHeart\n")
    new = read_new_words(path, tokenizer)
    assert new.words == ("myocardial", "infarction")
    assert [list(words) for words in new.refused.values()] == [
        ["patient (line 3)"],
        ["Infarction (line 4)", "Heart (line 7)"],
        ["myocardial (line 5)"],
    ]
    output = tmp_path / "new.txt"
    run(CommandOptions(str(path), vocab_file=str(vocab_file), output_file=str(output)))
    told = capsys.readouterr()
    assert "2 words left out, not as the tokenizer writes words (lower case" in told.err
    assert "1 words left out, repetitions: myocardial (line 5)" in told.err
    assert "text of" not in told.out
    path.write_text("Heart\npatient\n")
    with pytest.raises(ValueError, match=r"words\.txt: no word that can be added .*Heart \(line 1"):
        read_new_words(path, tokenizer)
    path.write_bytes(b"heart\n\xff\n")
    with pytest.raises(ValueError, match=r"words\.txt, line 2: not UTF-8"):
        read_new_words(path, tokenizer)


# === Where they go ===


def test_words_take_unused_places_or_stand_at_the_end():
    lines = [line if line != "the" else "the\r" for line in PIECES]
    in_slots = add_to_lines(lines, ["heart", "lung"], "unused")
    assert [i for i, (a, b) in enumerate(zip(lines, in_slots, strict=True)) if a != b] == [1, 2]
    assert in_slots[1:4] == ["heart", "lung", "[unused2]"]
    assert add_to_lines(lines, ["heart", "lung"], "end") == [*lines, "heart", "lung"]
    with pytest.raises(ValueError, match=r"6 words, .* 5 \[unused\] pieces; --place=end"):
        add_to_lines(lines, list("αβγδεζ"), "unused")


def test_a_vocabulary_without_a_last_line_end_and_with_a_repetition_keeps_its_ids(tmp_path):
    path, output = tmp_path / "v.txt", tmp_path / "new.txt"
    path.write_text("\n".join([*PIECES, "the"]))
    words = tmp_path / "words.txt"
    words.write_text("heart\n")
    run(CommandOptions(str(words), vocab_file=str(path), place="end", output_file=str(output)))
    assert output.read_text() == path.read_text() + "\nheart\n"
    old, new = load_vocab(path), load_vocab(output)
    assert new == {**old, "heart": len(PIECES) + 1}


def test_the_command_tells_what_a_text_saves(tmp_path, vocab_file, capsys):
    text, output = tmp_path / "text.txt", tmp_path / "new.txt"
    text.write_text(TEXT)
    options = {"vocab_file": str(vocab_file), "output_file": str(output), "min_frequency": 3}
    run(CommandOptions(input_file=(str(text),), **options))
    before, after = FullTokenizer(vocab_file), FullTokenizer(output)
    assert after.tokenize("The Myocardial tissue") == ["the", "myocardial", "tissue"]
    old, new = (sum(len(t.tokenize(line)) for line in TEXT.splitlines()) for t in (before, after))
    told = capsys.readouterr().out
    assert f"{old} pieces before, {new} after, {old - new} ({(old - new) / old:.2%}) saved" in told
    assert "tissue (was t ##i ##s ##s ##u ##e, 3 times in the text)" in told
    run(CommandOptions(input_file=(str(text),), num_words=1, **options))
    assert FullTokenizer(output).tokenize("myocardial tissue")[-1] == "tissue"
    told = capsys.readouterr().out
    assert "1 new words" in told and "as many [unused] pieces there are" not in told
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{p}\n" for p in PIECES if p == "[unused0]" or "unused" not in p))
    run(CommandOptions(input_file=(str(text),), **{**options, "vocab_file": str(few)}))
    assert "no more than 1 words: as many [unused] pieces there are" in capsys.readouterr().out
    run(CommandOptions(input_file=(str(text),), place="end", **options))
    assert len(load_vocab(output)) > len(PIECES)


def test_a_tokenizer_without_a_file_and_words_of_no_pieces(tmp_path, tokenizer, capsys):
    vocab = {**tokenizer.vocab, "last": max(tokenizer.vocab.values()) + 3}  # after ids of no piece
    made = extended(FullTokenizer.from_vocab(vocab), ["heart"], "end")
    assert made.vocab["heart"] == vocab["last"] + 1 and made.vocab["last"] == vocab["last"]
    assert {**made.vocab, **vocab} == made.vocab and len(made.vocab) == vocab["last"] + 2
    words, path = tmp_path / "words.txt", tmp_path / "v.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES))
    words.write_text("λογος\n")
    output = str(tmp_path / "o")
    run(CommandOptions(str(words), vocab_file=str(path), output_file=output))
    assert "1 words were [UNK] until now, so that their rows begin as its row: λογος" in (
        capsys.readouterr().err
    )


def test_words_that_become_unknown_are_told(tmp_path, vocab_file, capsys):
    # "beta" is a piece then, of "betaß" the rest is none: before, ß was none of its own either.
    path, text = tmp_path / "v.txt", tmp_path / "text.txt"
    path.write_text("".join(f"{piece}\n" for piece in [*PIECES, "be", "##taq1"]))
    text.write_text("beta betaq1\n" * 10)
    words = tmp_path / "words.txt"
    words.write_text("beta\nlung\n")
    output = tmp_path / "new.txt"
    run(CommandOptions(str(words), (str(text),), vocab_file=str(path), output_file=str(output)))
    told = capsys.readouterr().err
    assert "10 more words of the text are [UNK]" in told
    assert "1 words do not occur in the text: lung" in told
    counts = count_words(text.read_text().splitlines())
    assert text_cost(counts, FullTokenizer(output)).unknown == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_list": "w"}, "vocab_file, model_dir: expected one"),
        ({"word_list": "w", "vocab_file": "v", "model_dir": "m"}, "vocab_file, model_dir"),
        ({"vocab_file": "v", "output_file": "o"}, "word_list, input_file: expected"),
        ({"word_list": "w", "vocab_file": "v"}, "output_file: is what goes with vocab_file"),
        ({"word_list": "w", "model_dir": "v", "output_file": "o"}, "output_dir: is what goes"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        CommandOptions(**options)


def test_a_text_or_vocabulary_that_gives_nothing(tmp_path, vocab_file):
    text, output = tmp_path / "text.txt", str(tmp_path / "o")
    text.write_text("the patient\n" * 20)
    options = {"input_file": (str(text),), "output_file": output}
    with pytest.raises(ValueError, match="min_frequency: no word that occurs 10 times"):
        run(CommandOptions(vocab_file=str(vocab_file), **options))
    bare = tmp_path / "bare.txt"
    bare.write_text("".join(f"{piece}\n" for piece in PIECES if "unused" not in piece))
    with pytest.raises(ValueError, match=r"no \[unused\] pieces; --place=end"):
        run(CommandOptions(vocab_file=str(bare), **options))
    text.write_text("\n")
    with pytest.raises(ValueError, match="input_file: no words"):
        run(CommandOptions(vocab_file=str(vocab_file), **options))


# === Tokenizers and weights ===


def _save(name: str, folder: pathlib.Path, model, tokenizer) -> str:
    """Write a model in a format; return what names it."""
    if name == "tf":
        save_model_directory(folder, model, tokenizer, step=7)
    elif name == "hf":
        save_hf(folder, model, tokenizer)
    else:
        save_keras(folder / name, model, tokenizer)
        return str(folder / name)
    return str(folder)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("tf", "unused"), ("tf", "end"), ("hf", "unused"), ("hf", "end")),
        *(("m.keras", "end"), ("m.weights.h5", "end")),
    ],
)
def test_rows_of_new_words_are_the_mean_of_their_pieces(tmp_path, tokenizer, name, place):
    model = HEADS["pretraining"].make(CONFIG)
    bias = weights_by_name(model)["cls/predictions/output_bias"]
    bias.assign(np.random.default_rng(3).normal(size=bias.shape))
    source, target = tmp_path / "source", tmp_path / "target"
    path = _save(name, source, model, tokenizer)
    words = tmp_path / "words.txt"
    words.write_text("myocardial\ninfarction\n")
    run(CommandOptions(str(words), model_dir=path, place=place, output_dir=str(target)))
    loaded = load_model(str(target / name) if name.startswith("m.") else target)
    ids = [1, 2] if place == "unused" else [len(PIECES), len(PIECES) + 1]
    assert loaded.config.vocab_size == len(PIECES) + (2 if place == "end" else 0)
    assert loaded.tokenizer is not None and loaded.kind == "pretraining"
    assert loaded.tokenizer.encode("Myocardial infarction") == ids
    vocab = tokenizer.vocab
    old = {n: to_numpy(w) for n, w in weights_by_name(model).items()}
    for n, weight in weights_by_name(loaded.model).items():
        rows = to_numpy(weight)
        if n in ("bert/embeddings/word_embeddings", "cls/predictions/output_bias"):
            for i, parts in zip(ids, ("myo ##card ##ial", "in ##far ##ction"), strict=True):
                mean = np.mean([old[n][vocab[part]] for part in parts.split()], axis=0)
                np.testing.assert_allclose(rows[i], mean, rtol=2e-6, atol=1e-8)
            kept = [i for i in range(len(PIECES)) if i not in ids]
            np.testing.assert_array_equal(rows[kept], old[n][kept])
        elif "seed" not in n:
            np.testing.assert_array_equal(rows, old[n], err_msg=n)
    if name == "tf":
        assert loaded.transfer.step == 7


def test_a_model_with_more_rows_than_pieces_uses_these(tmp_path, tokenizer):
    model = HEADS["classification"].make(
        dataclasses.replace(CONFIG, vocab_size=len(PIECES) + 3), num_labels=2
    )
    save_model_directory(tmp_path / "m", model, tokenizer, ["no", "yes"])
    TrainedTask("classification", max_seq_length=13).write(tmp_path / "m")
    words = tmp_path / "words.txt"
    words.write_text("heart\n")
    target = tmp_path / "target"
    options = CommandOptions(
        str(words), model_dir=str(tmp_path / "m"), place="end", output_dir=str(target)
    )
    run(options)
    loaded = load_model(target)
    assert loaded.config.vocab_size == len(PIECES) + 3 and loaded.labels == ("no", "yes")
    trained = read_trained_task(target)
    assert trained is not None and trained.max_seq_length == 13
    with pytest.raises(ValueError, match="output_dir: expected a new or empty folder"):
        run(options)


def test_a_model_for_vectors_is_extended_with_its_pooling(tmp_path, tokenizer):
    model = HEADS["encoder"].make(CONFIG)
    source, target = tmp_path / "source", tmp_path / "target"
    save_sentence_transformers(
        source, model, tokenizer, pooling="max", normalize=True, max_seq_length=13
    )
    words = tmp_path / "words.txt"
    words.write_text("heart\n")
    run(CommandOptions(str(words), model_dir=str(source), output_dir=str(target)))
    expected = TrainedTask("similarity", max_seq_length=13, pooling="max", normalize=True)
    assert read_sentence_transformers(target) == read_trained_task(target) == expected
    assert (target / "1_Pooling" / "config.json").is_file()


def test_a_model_without_a_vocabulary_is_named(tmp_path, tokenizer):
    save_hf(tmp_path / "m", HEADS["encoder"].make(CONFIG), None)
    words = tmp_path / "words.txt"
    words.write_text("heart\n")
    options = CommandOptions(
        str(words), model_dir=str(tmp_path / "m"), output_dir=str(tmp_path / "o")
    )
    with pytest.raises(ValueError, match="model_dir: no vocabulary lies with .*m"):
        run(options)


def test_a_model_that_cannot_be_written_leaves_an_empty_folder(tmp_path, tokenizer, monkeypatch):
    save_hf(tmp_path / "m", HEADS["encoder"].make(CONFIG), tokenizer)
    words, target = tmp_path / "words.txt", tmp_path / "target"
    words.write_text("heart\n")
    options = CommandOptions(str(words), model_dir=str(tmp_path / "m"), output_dir=str(target))

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(extended_model, "read_trained_task", full)
        with pytest.raises(OSError, match="no space left"):
            run(options)
    assert not list(target.iterdir())
    (target / ".unfinished-x").mkdir()  # of a command that was killed
    run(options)
    names = {path.name for path in target.iterdir()}
    assert "model.safetensors" in names and not any(name.startswith(".") for name in names)


def test_other_pieces_must_keep_their_ids(tmp_path, tokenizer):
    model = HEADS["encoder"].make(CONFIG)
    save_model_directory(tmp_path, model, tokenizer)
    moved = FullTokenizer.from_vocab({**tokenizer.vocab, "the": 999})
    with pytest.raises(ValueError, match="extended: 1 pieces have other ids .* 'the': 999"):
        load_with_new_words(tmp_path, tokenizer, moved)


def test_all_tokenizers_make_one_piece_of_a_new_word(tmp_path, tokenizer):
    words = ["myocardial", "ß", "x" * 200, "кровь", "ไทย", "a1b2"]
    later = extended(tokenizer, words, "end")
    expected = [len(PIECES) + i for i in range(len(words))]
    text = " ".join(words).replace("myo", "Myo")
    assert later.encode(text) == expected
    in_graph = TextToIds.from_vocab(later.vocab, True, 16)

    module = tf.Module()
    module.tokenizer = in_graph
    module.pack = tf.function(in_graph.pack, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    for pack in (in_graph.pack, saved.pack):
        packed = pack(tf.constant([text]))["input_ids"].numpy()[0]
        assert packed[1 : 1 + len(words)].tolist() == expected
    save_hf(
        tmp_path / "hf",
        HEADS["encoder"].make(dataclasses.replace(CONFIG, vocab_size=len(later.vocab))),
        later,
    )
    fast = pytest.importorskip("tokenizers").Tokenizer.from_file(
        str(tmp_path / "hf" / "tokenizer.json")
    )
    short = [word for word in words if len(word) <= 100]  # their tokenizer looks up 100 at most
    ids = fast.encode(" ".join(short), add_special_tokens=False).ids
    assert ids == [i for i, word in zip(expected, words, strict=True) if word in short]


def test_a_preset_of_keras_hub_is_extended_as_one(tmp_path, tokenizer, monkeypatch, capsys):
    """What writes a preset has tests of its own, and takes seconds to import."""
    source, target = tmp_path / "source", tmp_path / "target"
    save_model_directory(source, HEADS["encoder"].make(CONFIG), tokenizer)
    TrainedTask("classification", max_seq_length=13).write(source)  # for which a preset has no file
    monkeypatch.setattr(
        extended_model, "locate", lambda path: dataclasses.replace(locate(path), format="keras_hub")
    )
    monkeypatch.setattr(extended_model, "save_keras_hub", save_model_directory)
    words = tmp_path / "words.txt"
    words.write_text("myocardial\n")
    run(CommandOptions(str(words), model_dir=str(source), output_dir=str(target)))
    told = capsys.readouterr().out
    assert f"wrote {target}: encoder model, KerasHub preset; the rows of 1 words are" in told
    loaded = load_model(target)
    assert loaded.tokenizer is not None and loaded.tokenizer.encode("Myocardial") == [1]
    assert read_trained_task(target) is None
