"""The page of one fine-tuning: what it shows of each kind of task, and that texts stay texts."""

import json
import pathlib
import types
from html.parser import HTMLParser

import numpy as np
import pytest

from bert_tf.tasks.calibration import reliability_of
from bert_tf.tasks.entity_metrics import entity_scores
from bert_tf.tasks.table import TASKS, custom_task
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning.glue import TextExample
from data_prep.finetuning.ner import Sentence
from data_prep.finetuning.squad import SquadExample
from data_prep.finetuning.swag import ChoiceExample
from experiments.finetuning import report_of_texts
from experiments.finetuning.report import write_report
from experiments.finetuning.report_of_texts import text_sections
from experiments.finetuning.report_of_words import answer_sections, tagging_sections
from experiments.plots.report_page import MOST_CHARACTERS, Section, paragraph, to_page

HOSTILE = (
    "</td><script>alert(1)</script><img src='http://x.invalid/a.png' onerror=alert(2)> & \u202eabc"
)


class Page(HTMLParser):
    """The elements of a page, and its texts by row of a table."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.rows, self.text, self.in_cell = [], [], [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def below(self, first):
        """Rows after the header whose first cell is this, to the next header."""
        start = next(n for n, row in enumerate(self.rows) if row[0] == first)
        return self.rows[start + 1 :]


def page_of(sections):
    return Page(to_page("x", [], sections))


def data_of(task, examples, lengths, folder, split="dev"):
    path = folder / f"{split}.npy"
    np.save(path, np.array(lengths))
    prepared = {split: types.SimpleNamespace(lengths_file=path)}
    return types.SimpleNamespace(task=task, prepared=prepared, examples=lambda split: examples)


def shown(task, examples, logits, labels, folder, lengths=None, **trained):
    data = data_of(task, examples, lengths or range(3, 3 + len(examples)), folder)
    evaluator = types.SimpleNamespace(
        logits={"dev": np.asarray(logits, np.float32)}, labels={"dev": np.asarray(labels)}
    )
    return text_sections(data, evaluator, TrainedTask(task.kind, **trained))


def texts(*values, second=None):
    return [
        TextExample(f"dev-{n}", text, second, None, f"x.csv, line {n + 2}")
        for n, text in enumerate(values)
    ]


def test_a_page_loads_nothing_and_texts_stay_texts(tmp_path):
    task = custom_task("classification", ("no", HOSTILE), False)
    examples = texts(HOSTILE, "fine\x00\ud800", "x" * (MOST_CHARACTERS + 7))
    sections = shown(task, examples, [[1, 0], [1, 0], [2, 0]], [1, 1, 1], tmp_path)
    html = to_page(HOSTILE, [paragraph(HOSTILE)], [Section(HOSTILE, []), *sections])
    html.encode()  # which half a character is not
    page = Page(html)
    assert "script" not in page.tags and page.tags.count("img") == 1  # the reliability picture
    assert all(
        value.startswith(("data:image/png;base64,", "#part-"))
        for name, value in page.attributes
        if name in ("src", "href")
    )
    assert not any(name.startswith("on") for name, _ in page.attributes)
    policy = dict(page.attributes)["content"], "default-src 'none'" in html
    assert policy[1] and "http:" not in html.replace(HOSTILE, "").replace("src='http:", "")
    # 3 times said, as label of the table and the matrix, as true label 3 times, as text once.
    assert page.text.count(HOSTILE) >= 6
    assert "fine\ufffd\ufffd" in page.text
    assert (
        "x" * MOST_CHARACTERS + " …" in page.text and "x" * (MOST_CHARACTERS + 1) not in page.text
    )


def test_labels_errors_and_lengths(tmp_path):
    task = custom_task("classification", ("a", "b", "c"), False)
    logits = [[3, 0, 0], [0, 2, 0], [5, 0, 0], [0, 0, 1], [0, 1, 0]]
    labels = [0, 0, 1, 2, 2]  # wrong: 1 (loss 2.3), 2 (5.0), 4 (1.9)
    page = page_of(shown(task, texts(*"PQRST"), logits, labels, tmp_path, lengths=[9, 4, 4, 9, 4]))
    errors = page.below("where")
    assert [row[:2] for row in errors] == [["line 4", "R"], ["line 3", "Q"], ["line 6", "T"]]
    shares = np.exp([5, 0, 0]) / np.exp([5, 0, 0]).sum()
    assert errors[0][2:] == [f"b ({shares[1]:.3f})", f"a ({shares[0]:.3f})", "4"]
    matrix = next(n for n, row in enumerate(page.rows) if row == ["", "a", "b", "c"])
    assert page.rows[matrix + 1 : matrix + 4] == [
        ["a", "1", "1", "0"],
        ["b", "1", "0", "0"],
        ["c", "0", "1", "1"],
    ]
    assert page.below("true label")[:3] == [["a", "b", "1"], ["b", "a", "1"], ["c", "b", "1"]]
    assert page.below("label")[0] == ["a", "0.5000", "0.5000", "0.5000", "2"]
    by_length = page.below("pieces")[:2]
    assert [row[:2] for row in by_length] == [["4 to 4", "3"], ["9 to 9", "2"]]
    assert [row[2].strip() for row in by_length] == ["0", "1"]
    assert "5 examples. The best answer that is the same for all has accuracy 0.4" in page.text
    assert "3 of 5 examples are wrong" in page.text


def test_many_labels_have_no_matrix_and_pairs_two_texts(tmp_path):
    names = tuple(f"label{n}" for n in range(31))
    task = custom_task("classification", names, True)
    logits = np.eye(31)[[0, 5, 5]]
    examples = texts("p", "q", "r", second="second")
    page = page_of(shown(task, examples, logits, [0, 5, 7], tmp_path))
    assert ["", *names] not in page.rows
    assert page.below("true label")[0] == ["label7", "label5", "1"]
    assert page.below("where")[0][1:3] == ["r", "second"]


def test_several_labels_numbers_and_choices(tmp_path):
    task = custom_task("multi_label", ("a", "b"), False)
    logits = [[2, -2], [2, 2], [-3, 3]]
    page = page_of(shown(task, texts(*"PQR"), logits, [[1, 0], [0, 0], [1, 1]], tmp_path))
    assert [row[1:4] for row in page.below("where")] == [
        ["Q", "none", "a (0.881), b (0.881)"],
        ["R", "a (0.047), b (0.953)", "b (0.953)"],
    ]
    # At thresholds that hold nothing here the first example is wrong too.
    sections = shown(
        task, texts(*"PQR"), logits, [[1, 0], [0, 0], [1, 1]], tmp_path, thresholds=(0.9, 0.97)
    )
    assert [row[1] for row in page_of(sections).below("where")] == ["R", "P"]
    task = custom_task("regression", None, False)
    page = page_of(shown(task, texts(*"PQ"), [[1.5], [4.0]], [1.0, 1.0], tmp_path))
    assert [row[1:4] for row in page.below("where")] == [["Q", "1", "4"], ["P", "1", "1.5"]]
    assert page.tags.count("img") == 1
    task = types.SimpleNamespace(**{**vars(TASKS["swag"]), "num_choices": 3})
    examples = [ChoiceExample("dev-0", "begins", ("x", "y", "z"), 2, "s.csv, line 2")]
    page = page_of(shown(task, examples, [[0, 1, 0]], [2], tmp_path))
    share = np.exp([0, 1, 0]) / np.exp([0, 1, 0]).sum()
    expected = ["line 2", "begins", "z", "y", f"{share[2]:.3f}", f"{share[1]:.3f}", "3"]
    assert page.below("where") == [expected]


def test_a_temperature_and_logits_that_are_not_finite(tmp_path, monkeypatch):
    task = custom_task("classification", ("a", "b"), False)
    logits, drawn = np.array([[4, 0], [0, 2]]), []
    draw = report_of_texts.reliability_figure
    monkeypatch.setattr(
        report_of_texts, "reliability_figure", lambda curves: drawn.append(curves) or draw(curves)
    )
    shown(task, texts(*"PQ"), logits, [1, 1], tmp_path, temperature=2.0)
    found = [(name, curve.error) for name, curve in drawn[0].items()]
    expected = [reliability_of("classification", logits / t, [1, 1]).error for t in (1, 2)]
    assert found == [("without temperature", expected[0]), ("at temperature 2", expected[1])]
    page = page_of(shown(task, texts(*"PQ"), [[np.nan, 0], [0, 2]], [1, 1], tmp_path))
    assert "How far probabilities can be trusted" not in page.text
    assert page.below("where")[0][0] == "line 2"


def test_tagged_words(tmp_path):
    sentences = [
        Sentence(("Ada", "Lovelace", "left"), ("B-PER", "I-PER", "O"), line=1),
        Sentence(("in", "<b>Rome</b>", "now"), ("O", "B-LOC", "O"), line=5),
    ]
    predicted = [["B-PER", "I-PER", "O"], ["B-PER", "O", "B-LOC"]]
    labels = ("B-LOC", "B-PER", "I-PER", "O")
    true = [one.tags for one in sentences]
    scores = entity_scores(true, predicted, labels)
    html = to_page("x", [], tagging_sections(sentences, predicted, scores, labels))
    page = Page(html)
    assert "b" not in page.tags
    assert page.below("where") == [
        ["line 5", "in <b>Rome</b> LOC now", "in PER <b>Rome</b> now LOC "]
    ]
    assert html.count('class="missed"') == 1 and html.count('class="wrong"') == 2
    assert page.below("type")[:3] == [
        ["LOC", "0.00", "0.00", "0.00", "1", "1", "0"],
        ["PER", "50.00", "100.00", "66.67", "1", "2", "1"],
        ["all", "33.33", "50.00", "40.00", "2", "3", "1"],
    ]
    assert "1 of 2 sentences" in page.text


@pytest.mark.parametrize("version_2", [False, True])
def test_answers(version_2):
    def question(name, answers):
        words = ("the", "mill", "of", "Asa")
        return SquadExample(name, f"{name}?", words, None, None, None, False, answers, "", 0, 0)

    examples = [question("who", ("Asa",)), question("what", ("the mill", "mill"))]
    answers = {"who": "mill", "what": "a mill"}
    references = {one.qas_id: one.answers for one in examples}
    sure = {"who": 0.75, "what": 0.9}
    if version_2:
        examples.append(question("why", ()))
        references["why"], answers["why"], sure["why"] = (), "of Asa", 0.5
    page = page_of(answer_sections(examples, references, answers, sure, version_2=version_2))
    expected = [["who?", "Asa", "mill", "0.75", "the mill of Asa"]]
    if version_2:
        expected.append(["why?", "no answer", "of Asa", "0.5", "the mill of Asa"])
        assert page.below("the question")[:2] == [
            ["has an answer", "2", "2", "50"],
            ["has none", "1", "1", "0"],
        ]
    assert page.below("question") == expected


def test_long_documents_are_folded():
    words = tuple(f"w{n}" for n in range(90))
    one = SquadExample("a", "?", words, None, None, None, False, ("x",), "", 0, 0)
    page = page_of(answer_sections([one], {"a": ("x",)}, {"a": "y"}, {"a": 1.0}, version_2=False))
    text = " ".join(words)
    assert page.below("question")[0][-1] == f"{text[:120]} …{text}"
    assert "details" in page.tags


def write(folder, name, value):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def run_of(seed, accuracy, **more):
    return {
        "seed": seed,
        "figures": {"accuracy": accuracy},
        "best_step": 7,
        "cpu_seconds": 3.4,
        "learning_rate": 1e-4,
        "train_batch_size": 8,
        "diverged": None,
        **more,
    }


def test_what_is_shown_of_training(tmp_path):
    """The settings and curves are those of the run that is kept."""
    task = custom_task("classification", ("a", "b"), False)
    write(tmp_path, "eval_results.json", {"eval_accuracy": 0.75, "loss": 0.5, "eval_loss": 0.5})
    write_report(tmp_path, task, [])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.below("figure of the dev set") == [["accuracy", "0.75"], ["loss", "0.5"]]
    assert "Training" not in page.text
    write(tmp_path, "seeds.json", {"runs": [run_of(1, 0.5), run_of(2, 0.75)], "kept": 2})
    config = {"learning_rate": 3e-4, "warmup_proportion": 0, "seed": 2, "lora_rank": 0}
    write(tmp_path, "seed-2/config.json", config)
    lines = [{"kind": "train", "step": n, "loss": 1 / n, "learning_rate": 1e-4} for n in (1, 2)]
    write(tmp_path, "seed-2/metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    write_report(tmp_path, task, [])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    runs = page.below("learning rate")[:2]
    assert runs == [["0.0001", "8", str(n), "7", x, "3", ""] for n, x in ((1, "0.5"), (2, "0.75"))]
    assert page.below("setting of the run that is kept") == [
        ["learning rate", "0.0003"],
        ["warmup proportion", "0"],
        ["seed", "2"],
    ]
    assert page.tags.count("img") == 1
    best = {"folder": "/moved/learning_rate-0.1-batch_size-3/seed-5"}
    runs = [run_of(5, 0.5), run_of(6, float("nan"), diverged="infinite")]
    write(tmp_path, "combinations.json", {"best": best, "combinations": [{"runs": runs}]})
    write(tmp_path, "learning_rate-0.1-batch_size-3/seed-5/config.json", {"learning_rate": 0.1})
    write(tmp_path, "learning_rate-0.1-batch_size-3/seed-5/metrics.jsonl", "")
    write_report(tmp_path, task, [])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.below("setting of the run that is kept") == [["learning rate", "0.1"]]
    assert page.below("learning rate")[1][4:] == ["not finite", "3", "infinite"]
    assert "img" not in page.tags  # of a log without a line
    figures = {"accuracy": {"mean": 0.5, "std": 0.25, "min": 0.25, "max": 0.75}}
    one = {"learning_rate": 0.1, "train_batch_size": 3, "figures": figures}
    folds = {"folds": 4, "selection_metric": "accuracy", "combinations": [one]}
    write(tmp_path, "folds.json", folds)
    write_report(tmp_path, task, [])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.below("learning rate")[0] == ["0.1", "3", "0.5", "0.25", "0.25", "0.75"]
    assert "Accuracy over 4 folds" in page.text


def test_the_page_is_one_file():
    style = (pathlib.Path(__file__).parents[2] / "experiments/plots/report_page.py").read_text()
    assert "url(" not in style and "@import" not in style
