"""Make files, finished and half done, of the code before its modules moved to other packages.

    PYTHONPATH=. python tests/golden/earlier/make_artifacts.py

in a checkout of the commit "Refuse repeated seeds and a scale's name that is none, and call an
object one", with this file copied into it: what is stopped is stopped by reaching into modules of
that state. tests/test_earlier_files.py asks later code to read these files and to finish the work.
All paths within them are relative to the folder that the commands run in.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import unicodedata

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent.parent.parent

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "the a cat dog bird sat ran saw was in on by tree house hill old young big small red it he "
    "good bad film"
).split()
VOCABULARY = (*SPECIALS, *WORDS, "##s")
LENGTH, PREDICTIONS = 17, 3
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 14,
    "num_attention_heads": 2,
    "intermediate_size": 19,
    "max_position_embeddings": 23,
    "type_vocab_size": 2,
    "initializer_range": 0.3,
}
LABELS = ("bad", "good", "so so")

COMMANDS = {
    "pretraining_data": [
        "data_prep/create_pretraining_data.py",
        "--input_file=text_1.txt,text_2.txt",
        "--vocab_file=vocab.txt",
        "--output_file=records/train.tfrecord",
        "--num_shards=3",
        f"--max_seq_length={LENGTH}",
        f"--max_predictions_per_seq={PREDICTIONS}",
        "--dupe_factor=3",
        "--random_seed=7",
        "--num_workers=1",
    ],
    "finetuning_data": [
        "data_prep/create_finetuning_data.py",
        "--train_file=train.csv",
        "--dev_file=dev.csv",
        "--text_column=text",
        "--label_column=label",
        "--vocab_file=vocab.txt",
        "--max_seq_length=13",
        "--output_dir=task_records",
    ],
    "pretraining": [
        "experiments/run_pretraining.py",
        "--input_file=records/train-*.tfrecord",
        "--bert_config_file=bert_config.json",
        "--vocab_file=vocab.txt",
        "--output_dir=pretrained",
        f"--max_seq_length={LENGTH}",
        f"--max_predictions_per_seq={PREDICTIONS}",
        "--do_train",
        "--do_eval",
        "--num_train_steps=13",
        "--num_warmup_steps=2",
        "--learning_rate=0.003",
        "--train_batch_size=5",
        "--save_checkpoints_steps=5",
        "--keep_checkpoints=1",
        "--iterations_per_loop=1",
        "--log_steps=3",
        "--notensorboard",
    ],
    "classifier": [
        "experiments/run_classifier.py",
        "--train_file=train.csv",
        "--dev_file=dev.csv",
        "--text_column=text",
        "--label_column=label",
        "--model_dir=pretrained",
        "--output_dir=classifier",
        "--max_seq_length=13",
        "--do_train",
        "--do_eval",
        "--num_train_steps=11",
        "--learning_rate=0.003",
        "--train_batch_size=5",
        "--save_checkpoints_steps=3",
        "--eval_every_steps=5",
        "--iterations_per_loop=1",
        "--log_steps=3",
    ],
}

# Each is run in the place of a script, with an argument of its own before the script's.
DIES_WHILE_TOKENIZING = """
import os, runpy, signal, sys

replace = os.replace

def replace_and_die(source, target):
    replace(source, target)
    if os.path.basename(target) == "piece-0000000.npz":
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace_and_die
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DIES_WHILE_WRITING = """
import os, runpy, shutil, signal, sys

copy, files = shutil.copyfileobj, []

def copy_half_and_die(source, target, *arguments):
    files.append(target)
    if len(files) == 2:
        data = source.read()
        target.write(data[: len(data) // 2])
        target.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    copy(source, target, *arguments)

shutil.copyfileobj = copy_half_and_die
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IS_ASKED_TO_END = """
import os, runpy, signal, sys
from experiments import preemption

is_asked, left = preemption.is_asked, int(sys.argv[1])

def is_asked_now():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGTERM)
    return is_asked()

preemption.is_asked = is_asked_now
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name: str, folder: pathlib.Path, prelude: tuple[str, ...] = (), status: int = 0) -> str:
    """Run a command of COMMANDS in a folder."""
    script, *arguments = COMMANDS[name]
    done = subprocess.run(  # noqa: S603
        [sys.executable, *prelude, str(REPOSITORY / script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != status:
        raise RuntimeError(f"{name} ended with {done.returncode}, not {status}:\n{done.stdout}")
    return done.stdout


def pack(path: pathlib.Path, folder: pathlib.Path, names: tuple[str, ...]) -> None:
    """Pack files and folders; the same bytes whenever it is done."""

    def plain(member):
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        return member

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.add(folder / name, name, filter=plain)
    path.write_bytes(gzip.compress(stream.getvalue(), mtime=0))


def compress(path: pathlib.Path) -> None:
    """Replace a file by a compressed one, which of a .keras file is a third as large."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def write_json(path: pathlib.Path, values) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# --- text and records -----------------------------------------------------------------------------


def text(seed: int) -> str:
    """Five documents of random words."""
    rng = random.Random(seed)
    documents = []
    for _ in range(5):
        lines = [sentence(rng, rng.randint(3, 8)) for _ in range(rng.randint(3, 6))]
        documents.append("".join(f"{line}\n" for line in lines))
    return "\n".join(documents)


def sentence(rng: random.Random, count: int) -> str:
    """Random words, some of which have an s."""
    return " ".join(rng.choice(WORDS) + rng.choice(("", "", "s")) for _ in range(count))


def table(count: int, seed: int) -> str:
    """Rows of a task with three labels."""
    rng = random.Random(seed)
    rows = ["text,label"]
    for _ in range(count):
        label = rng.choice(LABELS)
        word = rng.choice({"bad": ("bad", "old"), "good": ("good", "young")}.get(label, ("it",)))
        rows.append(f"{sentence(rng, rng.randint(1, 5))} {word},{label}")
    return "".join(f"{row}\n" for row in rows)


def write_inputs(folder: pathlib.Path) -> None:
    """Write texts, tables and the vocabulary."""
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"text_{number}.txt").write_text(text(number), encoding="utf-8")
    for name, count in (("train", 23), ("dev", 11)):
        (folder / f"{name}.csv").write_text(table(count, count), encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))


def what_is_digested(folder: pathlib.Path) -> dict:
    """Return what the name of the folder of unfinished work is a digest of.

    The test puts its own paths, times of files and versions in the place of those left empty.
    """
    from absl import flags

    from data_prep import create_pretraining_data, pretraining_pipeline, token_store

    values = flags.FlagValues()
    create_pretraining_data.define_flags(values)
    values(COMMANDS["pretraining_data"])
    before = os.getcwd()
    os.chdir(folder)
    try:
        options = create_pretraining_data.options_from_flags(values)
        found = {
            **dataclasses.asdict(options),
            "input_files": [token_store.input_stamp(path) for path in options.input_files],
            "output_files": [os.path.abspath(path) for path in options.output_files],
            "vocab_file": hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest(),
            "format": pretraining_pipeline.FORMAT_VERSION,
            "sizes": [
                token_store.PIECE_BYTES,
                pretraining_pipeline.BLOCK_SENTENCES,
                pretraining_pipeline.LOCKSTEP_DOCUMENTS,
                pretraining_pipeline.LOCKSTEP_DOCUMENTS_OF_LARGE,
                token_store.MAX_RESIDENT_BYTES,
                pretraining_pipeline.SHUFFLED_PAIRS,
                pretraining_pipeline.CHUNK_INSTANCES,
                pretraining_pipeline.BATCH_TOKENS,
            ],
            "numpy": np.__version__,
            "unicode": unicodedata.unidata_version,
        }
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
        if digest != pretraining_pipeline.fingerprint(options):
            raise RuntimeError("the digest is of something else")
        found["input_files"] = [[path, None, None] for path in options.input_files]
        found["output_files"] = list(options.output_files)
        found["numpy"] = found["unicode"] = None
        return found
    finally:
        os.chdir(before)


def make_pretraining_data(place: pathlib.Path) -> dict:
    """Pack records, and the folders of two runs that were killed on the way to them."""
    folder = place / "pretraining_data"
    write_inputs(folder)
    run("pretraining_data", folder)
    expected = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "records").glob("*.tfrecord"))
    }
    for name, prelude in (("tokenizing", DIES_WHILE_TOKENIZING), ("writing", DIES_WHILE_WRITING)):
        killed = place / name
        write_inputs(killed)
        run("pretraining_data", killed, ("-c", prelude, ""), -signal.SIGKILL)
        (work,) = (killed / "records").glob("train.work-*")
        shutil.copytree(work, folder / f"work_{name}")
    names = ("text_1.txt", "text_2.txt", "vocab.txt", "records", "work_tokenizing", "work_writing")
    pack(FOLDER / "pretraining_data.tar.gz", folder, names)
    return {"record_sha256": expected, "work_folder_of": what_is_digested(folder)}


def make_finetuning_data(place: pathlib.Path) -> dict:
    """Pack records of a task."""
    folder = place / "finetuning_data"
    write_inputs(folder)
    run("finetuning_data", folder)
    pack(
        FOLDER / "finetuning_data.tar.gz",
        folder,
        ("train.csv", "dev.csv", "vocab.txt", "task_records"),
    )
    found = {}
    for split in ("train", "dev"):
        manifest = json.loads((folder / f"task_records/{split}.manifest.json").read_text())
        found[split] = manifest["fingerprint"]
    return {"fingerprints": found, "unicode": unicodedata.unidata_version}


# --- runs -----------------------------------------------------------------------------------------


def log_of(folder: pathlib.Path) -> list[dict]:
    """Return the lines of a run's log without what the clock decides."""
    timed = ("sequences_per_second", "tokens_per_second", "time_seconds")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in timed} for x in lines]


def make_pretraining_run(place: pathlib.Path) -> dict:
    """Pack a run that was asked to end after 7 steps of 13; return its log if it had not been."""
    from bert_tf.config import BertConfig

    folder = place / "pretraining_data"
    BertConfig(**SIZES, num_hidden_layers=1).to_json_file(folder / "bert_config.json")
    run("pretraining", folder)
    (folder / "pretrained").rename(folder / "whole")
    run("pretraining", folder, ("-c", IS_ASKED_TO_END, "7"), 75)
    (folder / "pretrained").rename(folder / "stopped")
    pack(FOLDER / "stopped_pretraining.tar.gz", folder, ("bert_config.json", "stopped"))
    (folder / "pretrained").mkdir()
    for path in (folder / "whole").iterdir():
        if path.name.startswith(("bert_", "vocab")):
            shutil.copy2(path, folder / "pretrained" / path.name)
    pack(FOLDER / "pretrained.tar.gz", folder, ("pretrained",))
    results = json.loads((folder / "whole" / "eval_results.json").read_text())
    return {"log": log_of(folder / "whole"), "eval_results": results}


def make_classifier_run(place: pathlib.Path) -> dict:
    """Pack a run that was asked to end after 7 steps of 11, and the model of one that was not."""
    folder = place / "finetuning_data"
    shutil.copytree(place / "pretraining_data" / "pretrained", folder / "pretrained")
    run("classifier", folder)
    (folder / "classifier").rename(folder / "whole")
    run("classifier", folder, ("-c", IS_ASKED_TO_END, "7"), 75)
    (folder / "classifier").rename(folder / "stopped")
    pack(FOLDER / "stopped_classifier.tar.gz", folder, ("stopped",))
    (folder / "classifier").mkdir()
    for path in (folder / "whole").iterdir():
        if path.name.startswith(("bert_", "vocab", "labels")):
            shutil.copy2(path, folder / "classifier" / path.name)
    pack(FOLDER / "classifier.tar.gz", folder, ("classifier",))
    results = json.loads((folder / "whole" / "eval_results.json").read_text())
    return {"log": log_of(folder / "whole"), "eval_results": results}


# --- models ---------------------------------------------------------------------------------------


def batch_of(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return inputs of a model, with padding and two segments."""
    lengths = rng.integers(5, 12, 3)[:, None]
    mask = (np.arange(11) < lengths).astype(np.int32)
    return {
        "input_ids": rng.integers(5, len(VOCABULARY), mask.shape).astype(np.int32) * mask,
        "input_mask": mask,
        "segment_ids": (np.arange(11) >= lengths // 2).astype(np.int32) * mask,
    }


def make_models() -> None:
    """Save compiled models and a model directory, their outputs, and where two steps more lead."""
    import keras
    from bert_tf.heads import pretraining_compile_arguments

    import bert_tf

    folder = FOLDER / "models"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    keras.utils.set_random_seed(3)
    config = bert_tf.BertConfig(**SIZES, num_hidden_layers=2)
    inputs = batch_of(rng)
    arrays = dict(inputs)

    def compiled(model, **arguments):
        for weight in model.weights:  # also those that begin as zeros and ones
            weight.assign(weight + rng.normal(scale=0.1, size=weight.shape))
        optimizer = bert_tf.create_optimizer(1e-3, num_train_steps=13, num_warmup_steps=2)
        model.compile(optimizer=optimizer, jit_compile=False, **arguments)
        return model

    def train(model, *batch):
        return float(model.train_on_batch(*batch, return_dict=True)["loss"])

    # Without dropout, whose masks Keras does not promise to continue.
    calm = {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    small = dataclasses.replace(config, **calm)
    classifier = compiled(
        bert_tf.bert_classifier(small, len(LABELS), dropout_rate=0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    arrays["labels"] = np.array([2, 0, 1], np.int32)
    for _ in range(3):
        train(classifier, inputs, arrays["labels"])
    classifier.save(folder / "classifier.keras")
    arrays["classifier"] = classifier.predict(inputs, verbose=0)
    arrays["classifier_losses"] = [train(classifier, inputs, arrays["labels"]) for _ in range(2)]
    arrays["classifier_later"] = classifier.predict(inputs, verbose=0)

    pretrainer = compiled(bert_tf.bert_pretrainer(small), **pretraining_compile_arguments(small))
    positions = np.array([[1, 3, 4], [2, 4, 0], [1, 0, 0]], np.int32)
    real = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
    arrays |= {
        "masked_lm_positions": positions,
        "masked_lm_ids": rng.integers(5, len(VOCABULARY), real.shape).astype(np.int32),
        "masked_lm_weights": real,
        "next_sentence_labels": np.array([[0], [1], [0]], np.int32),
    }
    batch = (
        {**inputs, "masked_lm_positions": positions},
        {
            "masked_lm_logits": arrays["masked_lm_ids"],
            "next_sentence_logits": arrays["next_sentence_labels"],
        },
        {"masked_lm_logits": real, "next_sentence_logits": np.ones((3, 1), np.float32)},
    )
    train(pretrainer, *batch)
    pretrainer.save(folder / "pretrainer.keras")

    def keep_outputs(name):
        for output, value in pretrainer.predict(batch[0], verbose=0).items():
            arrays[f"{name}/{output}"] = value

    keep_outputs("pretrainer")
    arrays["pretrainer_losses"] = [train(pretrainer, *batch) for _ in range(2)]
    keep_outputs("pretrainer_later")

    (folder / "words.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    tagger = bert_tf.bert_token_classifier(config, num_labels=len(LABELS))
    for weight in tagger.weights:
        weight.assign(weight + rng.normal(scale=0.1, size=weight.shape))
    bert_tf.save_model_directory(
        folder / "directory", tagger, folder / "words.txt", labels=LABELS, step=17
    )
    arrays["directory"] = tagger.predict(inputs, verbose=0)
    tokenizer = bert_tf.FullTokenizer(folder / "words.txt")
    bert_tf.save_keras(folder / "saved_keras" / "tagger.keras", tagger, tokenizer, LABELS)
    (folder / "words.txt").unlink()
    for name in ("classifier.keras", "pretrainer.keras", "saved_keras/tagger.keras"):
        compress(folder / name)
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(folder / "arrays.npz", **arrays)


def main() -> None:
    """Make all of it, and say how large it is."""
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        expected = {
            "commands": COMMANDS,
            "pretraining_data": make_pretraining_data(place),
            "finetuning_data": make_finetuning_data(place),
            "pretraining": make_pretraining_run(place),
            "classifier": make_classifier_run(place),
        }
    write_json(FOLDER / "expected.json", expected)
    make_models()
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size:7,} {path.relative_to(FOLDER)}")
    print(f"{sum(path.stat().st_size for path in files):7,} in all")


if __name__ == "__main__":
    main()
