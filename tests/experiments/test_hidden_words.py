"""Words hidden in held-out sentences by a rule, their table, and the steps of the quickstart."""

import json
import pathlib
import subprocess

import pytest
from absl import flags

from bert_tf.config import BertConfig
from bert_tf.options import define
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import python_docs, vocabulary
from data_prep.pretraining.options import define_flags
from experiments import fill_mask
from experiments.conversion.options import ExportOptions
from experiments.pretraining import quickstart
from experiments.pretraining.hidden_words import (
    HiddenWord,
    hide_words,
    most_frequent_word,
    rows_of_answers,
)
from experiments.pretraining.options import PretrainingOptions

VOCAB = {"the", "cat", "sat", "on", "mat", "and", "a", "dog"}
LINES = [
    "The cat sat.",  # too short
    "The cat and the dog sat on a mat today",  # the middle word, "sat", is a piece
    "The cat and the quokka's wombat?! dog sat there again",  # nearest to the middle: "dog"
    "x1 x2 x3 x4 x5 x6 x7 x8",  # none is a piece
    " ".join(["the"] * 21),  # too long
    "A dog and a cat and a DOG sat",
    "The cat sat on the mat and the dog sat",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(VOCAB)]))
    return FullTokenizer(path)


def test_the_middle_word_that_is_a_piece_is_hidden(tokenizer):
    hidden = hide_words(LINES, tokenizer, 10, 64)
    assert [(x.word, x.place) for x in hidden] == [("sat", 5), ("dog", 6), ("cat", 4), ("mat", 5)]
    assert hidden[0].text == "The cat and the dog [MASK] on a mat today"
    assert hidden[0].excerpt == "The cat and the dog ____ on a mat today"


def test_sentences_that_the_model_does_not_see_whole_are_passed_over(tokenizer):
    line = "the cat and the dog sat on a mat"  # nine pieces, [CLS] and [SEP]
    assert len(hide_words([line], tokenizer, 1, 11)) == 1
    assert hide_words([line], tokenizer, 1, 10) == []


def test_sentences_stand_at_equal_distances(tokenizer):
    lines = [f"the cat and the {'dog' if i % 2 else 'cat'} sat on a mat" for i in range(10)]
    assert hide_words(lines, tokenizer, 3, 64) == [
        HiddenWord(tuple(lines[i].split()), 4) for i in (0, 3, 6)
    ]
    assert hide_words([], tokenizer, 3, 64) == []


def test_long_sentences_are_cut_around_the_hidden_word():
    words = tuple("a b c d e f g h i j k l m".split())
    assert HiddenWord(words, 6).excerpt == "...b c d e f ____ h i j k l..."


def test_most_frequent_word_is_counted_among_pieces():
    assert most_frequent_word(["The cat", "the dog, xyz xyz xyz"], VOCAB) == ("the", 2 / 3)


def test_rows_mark_the_right_answer():
    hidden = [HiddenWord(("the", "cat", "sat"), 1)]
    answers = [{"tokens": [["dog", "cat", "mat", "a"]], "scores": [[0.5, 0.25, 0.125, 0.1]]}]
    assert rows_of_answers(hidden, answers)[1:] == [
        ("the ____ sat", "cat", "dog 50%  [cat] 25%  mat 12%")
    ]


# === The quickstart ===


class Commands:
    """Stand-ins for the commands: their flags must be some, and they write what is read later."""

    def __init__(self):
        self.ran, self.fails = [], None

    def call(self, command, cwd, env):
        (_, script, *arguments), name = command, pathlib.Path(command[1]).stem
        self.ran.append(name)
        if name == self.fails:
            return 3
        assert (cwd / script).is_file()
        values = flags.FlagValues()
        kinds = {
            "python_docs": python_docs.CommandOptions,
            "learn_vocab": vocabulary.CommandOptions,
            "run_pretraining": PretrainingOptions,
            "export_model": ExportOptions,
        }
        if name in kinds:
            define(kinds[name], values)
        else:
            {"create_pretraining_data": define_flags, "fill_mask": fill_mask.define_flags}[name](
                values
            )
        assert values([name, *arguments]) == [name]
        getattr(self, name, lambda _: None)(values)
        return 0

    def python_docs(self, values):
        for path in (values.output_file, values.heldout_output_file):
            pathlib.Path(path).parent.mkdir(exist_ok=True)
            pathlib.Path(path).write_text("\n".join(LINES))

    def learn_vocab(self, values):
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(VOCAB)]
        pathlib.Path(values.output_file).write_text("\n".join(pieces))

    def run_pretraining(self, values):
        config = BertConfig.from_json_file(values.bert_config_file)
        assert config.vocab_size == 5 + len(VOCAB) and config.hidden_dropout_prob == 0
        folder = pathlib.Path(values.output_dir)
        folder.mkdir()
        lines = [
            {"kind": "train", "step": 1},
            {
                "kind": "baseline",
                **{"unigram_loss": 5.5, "uniform_loss": 7.0, "unigram_accuracy": 0.125},
            },
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        results = {"masked_lm_loss_at_mask": 3.25, "masked_lm_accuracy_at_mask": 0.5}
        results["next_sentence_accuracy"] = 0.75
        (folder / "eval_results.json").write_text(json.dumps(results))

    def fill_mask(self, values):
        assert values.text[0] == "The cat and the dog [MASK] on a mat today"
        tokens = [["sat", "on"]] + [["the", "on"]] * (len(values.text) - 1)
        answers = [{"tokens": [each], "scores": [[0.75, 0.25]]} for each in tokens]
        text = "".join(json.dumps(answer) + "\n" for answer in answers)
        pathlib.Path(values.output_file).write_text(text)


def test_the_steps_of_the_quickstart(tmp_path, monkeypatch, capsys):
    commands, folder = Commands(), tmp_path / "out"
    monkeypatch.setattr(subprocess, "call", commands.call)
    monkeypatch.chdir(tmp_path)
    (folder / "model").mkdir(parents=True)
    for left in ("model/of before", "vocab.txt", "mine.txt"):
        (folder / left).write_text("x")
    quickstart.run(quickstart.QuickstartOptions(output_dir="out"))
    assert commands.ran == [
        *("python_docs", "learn_vocab", "create_pretraining_data", "create_pretraining_data"),
        *("run_pretraining", "export_model", "fill_mask"),
    ]
    assert not (folder / "model/of before").exists() and (folder / "mine.txt").exists()
    told = " ".join(capsys.readouterr().out.split())
    assert f"--output_dir={folder}/model" in told and "--dynamic_masking" in told
    assert "MLM loss at [MASK] 3.250 perplexity 26" in told
    assert "below the unigram model by 2.250 nats" in told
    assert "NSP accuracy 75.0%" in told and "model/metrics.jsonl" in told
    assert "fill_mask/1" not in told  # which no stand-in has written
    assert "right at once: 1 of 4; a unigram model says 'the'" in told


def test_a_step_of_the_quickstart_that_fails_ends_it(tmp_path, monkeypatch):
    commands = Commands()
    commands.fails = "learn_vocab"
    monkeypatch.setattr(subprocess, "call", commands.call)
    options = quickstart.QuickstartOptions(output_dir=str(tmp_path))
    with pytest.raises(quickstart.StepFailed, match="data_prep/learn_vocab.py ended with status 3"):
        quickstart.run(options)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train"}\n')
    with pytest.raises(ValueError, match="metrics.jsonl: no line of kind 'baseline'"):
        quickstart.baselines(tmp_path / "metrics.jsonl")
