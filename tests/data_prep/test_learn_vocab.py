import collections
import gzip
import os
import pathlib
import random
import subprocess
import sys
import unicodedata

import pytest

from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS, check_special_tokens, load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus.vocabulary import (
    CommandOptions,
    count_words,
    learn_vocab,
    read_lines,
    run,
    special_pieces,
)
from tests.support.languages import LANGUAGES

pytest.importorskip("tokenizers")

SCRIPT = pathlib.Path(__file__).parents[2] / "data_prep" / "learn_vocab.py"
TEXT = list(read_lines(str(SCRIPT.parent.parent / "LICENSE")))  # English that never changes


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=SCRIPT.parent.parent,
    )


def _merge_by_hand(words, single, num_merges, min_frequency):
    """Merge the most frequent pair again and again; ties go to the pieces that came first."""
    number = {piece: i for i, piece in enumerate(single)}
    split = {
        word: [word[0], *(f"##{character}" for character in word[1:])] for word in sorted(words)
    }
    while len(number) < len(single) + num_merges:
        pairs = collections.Counter()
        for word, pieces in split.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += words[word]
        frequency, _, _, pair = max(
            ((count, -number[a], -number[b], (a, b)) for (a, b), count in pairs.items()),
            default=(0, 0, 0, None),
        )
        if frequency < min_frequency:
            break
        merged = pair[0] + pair[1][2:]
        number.setdefault(merged, len(number))
        for pieces in split.values():
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == pair:
                    pieces[i : i + 2] = [merged]
                i += 1
    return list(number)[len(single) :]


@pytest.mark.parametrize("min_frequency", [1, 5])
def test_pieces_are_the_most_frequent_pairs(min_frequency):
    words = count_words(TEXT[:101])
    head = special_pieces(7)
    learned = learn_vocab(words, vocab_size=307, min_frequency=min_frequency, num_unused=7)
    assert learned.pieces[: len(head)] == head
    characters = sorted(set("".join(words)))
    continuing = sorted({f"##{character}" for word in words for character in word[1:]})
    single = [*characters, *continuing]
    assert learned.pieces[len(head) : len(head) + len(single)] == single
    merged = learned.pieces[len(head) + len(single) :]
    room = 307 - len(head) - len(single)
    assert merged == _merge_by_hand(words, single, room, min_frequency)
    assert len(merged) > 90
    assert (len(merged) == room) == (min_frequency == 1)


def test_specials_stand_as_in_bert_base_uncased(shared_data):
    released = list(load_vocab(shared_data / "vocab" / "bert-base-uncased-vocab.txt"))
    assert special_pieces(994) == released[:999]
    assert special_pieces(3)[:5] == ["[PAD]", "[unused0]", "[unused1]", "[unused2]", "[UNK]"]
    assert special_pieces(0) == list(SPECIAL_TOKENS)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_learned_vocabulary_fits_the_tokenizer(do_lower_case, tmp_path):
    words = count_words(TEXT, do_lower_case)
    learned = learn_vocab(words, vocab_size=607, num_unused=0)
    assert len(learned.pieces) == len(set(learned.pieces)) == 607
    assert learned.num_words == sum(words.values())
    assert learned.num_distinct_words == len(words)
    assert learned.unknown_word_fraction == 0
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(learned.pieces), encoding="utf-8")
    tokenizer = FullTokenizer(vocab_file, do_lower_case)
    check_special_tokens(tokenizer.vocab, vocab_file)
    assert list(tokenizer.vocab) == learned.pieces
    text = "".join(TEXT)
    pieces = tokenizer.tokenize(text)
    assert "[UNK]" not in pieces
    assert len(pieces) < 1.6 * len(tokenizer.basic_tokenizer.tokenize(text))
    assert do_lower_case == all(piece.islower() for piece in learned.pieces[5:] if piece.isalpha())


def test_count_words():
    lines = ["The café, the\tCAFÉ\u2028the\n", "a\x85b 中文 the\n"]
    expected = {"the": 4, "cafe": 2, ",": 1, "ab": 1, "中": 1, "文": 1}
    assert count_words(lines) == expected
    assert count_words(lines, do_lower_case=False)["CAFÉ"] == 1


def test_counts_do_not_depend_on_when_chunks_are_folded(monkeypatch):
    expected = count_words(TEXT)
    monkeypatch.setattr("data_prep.corpus.vocabulary._MAX_CHUNKS", 13)
    assert count_words(TEXT) == expected


def test_rare_characters_are_left_out():
    words = collections.Counter({"ab": 11, "ba": 7, "xb": 3, "a": 5, "y" * 201: 2, "z": 900})
    learned = learn_vocab(words, vocab_size=40, num_unused=0, limit_alphabet=4)
    assert learned.dropped_characters == ["x"]
    assert learned.pieces[5:] == ["a", "b", "z", "##a", "##b", "ab", "ba"]
    assert learned.alphabet_size == 3
    assert learned.unknown_word_fraction == pytest.approx(5 / 928)


def test_errors():
    words = collections.Counter({"ab": 3})
    with pytest.raises(ValueError, match=r"vocab_size must be at least 15, for 12 .*, got 14"):
        learn_vocab(words, vocab_size=14, num_unused=7)
    assert len(learn_vocab(words, vocab_size=15, num_unused=7).pieces) == 15
    with pytest.raises(ValueError, match="got no words"):
        learn_vocab(collections.Counter())
    for name in ("vocab_size", "min_frequency", "limit_alphabet"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            learn_vocab(words, **{name: 0})
    with pytest.raises(ValueError, match="limit_alphabet 1 leaves no word: the text has 2"):
        learn_vocab(words, limit_alphabet=1)


def test_read_lines(tmp_path):
    plain, zipped, broken = (tmp_path / name for name in ("a.txt", "b.gz", "c.gz"))
    plain.write_bytes("ä\nb\u2028c\n".encode())
    zipped.write_bytes(gzip.compress(b"d\ne"))
    assert list(read_lines(str(plain))) == ["ä\n", "b\u2028c\n"]
    assert list(read_lines(str(zipped))) == ["d\n", "e"]
    plain.write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: not UTF-8"):
        list(read_lines(str(plain)))
    broken.write_bytes(gzip.compress(b"d\ne" * 99)[:-9])
    with pytest.raises(ValueError, match=r"c\.gz:\d+: cannot read further"):
        list(read_lines(str(broken)))


def test_script_gives_the_same_bytes_always(tmp_path):
    # Many ties, and more characters than a hash table shows in one order twice.
    rng = random.Random(5)
    letters = [chr(code) for code in range(0x3B1, 0x3C2)] + list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(3001)]
    parts = [" ".join(words[:1511]), " ".join(words[1511:])]
    (tmp_path / "a.txt").write_text(parts[0] + "\n", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(parts[1].encode()))
    inputs = [f"{tmp_path}/a.txt,{tmp_path}/b.txt.gz", f"{tmp_path}/b*.gz,{tmp_path}/a*"]
    results = set()
    for number in range(4):
        output = tmp_path / f"vocab{number}.txt"
        output.write_text("old")
        run = _run(
            f"--input_file={inputs[number % 2]}",
            f"--output_file={output}",
            "--vocab_size=1009",
            "--num_unused=101",
            RAYON_NUM_THREADS=str(1 + number),
            TOKENIZERS_PARALLELISM="false" if number == 3 else "true",
            PYTHONHASHSEED=str(number),
        )
        assert run.returncode == 0, run.stderr
        assert "1,009 pieces" in run.stdout
        results.add(output.read_bytes())
    assert len(results) == 1
    assert results.pop().decode().split("\n")[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert not list(tmp_path.glob("*.tmp*"))


def test_script_says_what_is_wrong_in_one_line(tmp_path):
    output = tmp_path / "vocab.txt"
    text = tmp_path / "text.txt"
    for content, message, flags in (
        (b"", f"--input_file: no words in {text}", ()),
        (b"a \xff", f"{text}:1: not UTF-8", ()),
        (b"ab", "vocab_size must be at least", ("--vocab_size=17",)),
        (
            b"ab",
            f"--input_file: '{tmp_path}/no*' matches no file",
            (f"--input_file={tmp_path}/no*",),
        ),
    ):
        text.write_bytes(content)
        run = _run(f"--input_file={text}", f"--output_file={output}", *flags)
        assert run.returncode == 1
        assert run.stderr.startswith("learn_vocab: ") and message in run.stderr
        assert run.stderr.count("\n") == 1
        assert not output.exists()


def test_script_says_when_pieces_are_few(tmp_path):
    (tmp_path / "text.txt").write_text("ab ab ac")
    run = _run(f"--input_file={tmp_path}/text.txt", f"--output_file={tmp_path}/v", "--num_unused=2")
    assert run.returncode == 0, run.stderr
    assert "fewer pieces than --vocab_size=30522" in run.stdout
    expected = [*special_pieces(2), "a", "b", "c", "##b", "##c", "ab"]
    assert (tmp_path / "v").read_text().split() == expected


# Codes of languages whose marks are letters in all but name; of others they are accents.
WITH_SIGNS = {"bn", "bo", "dv", "gu", "hi", "ja", "jv", "km", "kn", "lo", "ml", "mr", "my", "nqo"}
WITH_SIGNS |= {"or", "pa", "si", "ta", "te", "th", "yi"}


@pytest.mark.parametrize("code", LANGUAGES)
def test_vowel_signs_that_are_stripped_are_counted_and_told(code, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(LANGUAGES[code].paragraph * 3, encoding="utf-8")
    for strip_accents in (None, False):
        options = CommandOptions(
            (str(text),),
            str(tmp_path / "vocab.txt"),
            300,
            strip_accents=strip_accents,
            num_unused=0,
        )
        run(options)
        told = "vowel signs and like marks" in capsys.readouterr().out
        assert told == (code in WITH_SIGNS and strip_accents is None)
        pieces = "".join(load_vocab(options.output_file))
        has_marks = "Mn" in map(unicodedata.category, unicodedata.normalize("NFD", pieces))
        assert has_marks <= (strip_accents is False) or code in ("ko",)


def test_characters_that_are_lost_are_counted_and_told(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("a" * 201 + " ab" * 99 + " x", encoding="utf-8")
    run(CommandOptions((str(text),), str(tmp_path / "v"), 300, num_unused=0, limit_alphabet=2))
    said = capsys.readouterr().out
    assert f"({202 / 400:.2%} of the characters)" in said
    assert f"warning: {201 / 400:.1%} of the characters stand in runs of more than 200" in said
    assert "--limit_alphabet" not in said.replace("beyond --limit_alphabet=2", "")
    text.write_text("ab " * 99 + "x" * 2 + " c" * 9, encoding="utf-8")
    run(CommandOptions((str(text),), str(tmp_path / "v"), 300, num_unused=0, limit_alphabet=2))
    assert "lack one, and become [UNK]; raise --limit_alphabet=2" in capsys.readouterr().out
