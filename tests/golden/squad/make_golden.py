"""Makes own.json and digests.json by running the original run_squad.py and evaluation scripts.

    python tests/golden/squad/make_golden.py --bert=PATH_TO_CHECKOUT --data=PATH_TO_DATA \
      --evaluate_v1=PATH/evaluate-v1.1.py --evaluate_v2=PATH/evaluate-v2.0.py

PATH_TO_CHECKOUT is a clone of google-research/bert at commit eedf571; PATH_TO_DATA has squad/ and
vocab/; the two scripts are SQuAD's official ones. The original's functions run unchanged: only
flags, files and logging of TensorFlow are stood in for. The tests import this file too.
"""

import argparse
import copy
import dataclasses
import hashlib
import importlib.util
import json
import logging
import pathlib
import sys
import tempfile
import types

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Case:
    """What is read, how it is cut, and how its answers are found."""

    data: str  # name of a file here, or of a selection of `select`
    casing: str
    lengths: tuple[int, int, int]  # max_seq_length, doc_stride, max_query_length
    is_training: bool
    version_2: bool
    n_best_size: int = 20
    max_answer_length: int = 30
    threshold: float = 0.0


OWN_CASES = {
    "v1_train_uncased": Case("v1.json", "uncased", (67, 23, 17), True, False),
    "v2_train_cased": Case("v2.json", "cased", (53, 19, 13), True, True),
    "v1_predict_cased": Case("v1.json", "cased", (97, 89, 11), False, False, 7, 5),
    "v2_predict_uncased": Case("v2.json", "uncased", (71, 13, 29), False, True, 5, 11, 3.5),
    "v2_single_uncased": Case("v2.json", "uncased", (397, 131, 64), False, True, 1, 30, 1.0),
}
REAL_CASES = {
    "dev_v1": Case("first", "uncased", (384, 128, 64), False, False),
    "dev_v1_awkward": Case("awkward_dev", "uncased", (113, 37, 19), False, False),
    "train_v1_awkward": Case("awkward_train", "cased", (131, 47, 31), True, False, 11, 13),
    "train_v2": Case("half_impossible", "uncased", (384, 128, 64), True, True),
    "dev_v2": Case("first_v2", "cased", (193, 67, 23), False, True, 20, 30, -1.0),
}
NUM_EACH = {"first": 100, "first_v2": 50, "half_impossible": 50, "awkward": 10}

# Answers of no model, to score: question id -> answer. Questions not named get the reference.
ODD_ANSWERS = {
    "long-1": "Asa and Thorold",
    "long-2": "the flood of 1893!",
    "long-3": "",
    "long-4": "a bridge",
    "long-5": "Mill, at Dunwick.",
    "long-7": "in 1731",
    "long-8": "the",
    "glued-1": "(1895-1943).",
    "glued-4": "3000000",
    "glued-8": "",
    "accent-1": "Zoe Bronte",
    "accent-6": "strasse",
    "cjk-1": "\u5317 \u4eac",
    "space-1": "324 m",
    "space-4": "red red",
    "sign-1": "9.99",
    "short-3": "an",
    "empty-1": "?",
}


def load_original(checkout) -> types.ModuleType:
    """Import the original's run_squad.py (and its tokenization, as an attribute)."""
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace())

    def define(name, default, text):
        setattr(flags.FLAGS, name, default)

    for kind in ("string", "integer", "float", "bool"):
        setattr(flags, f"DEFINE_{kind}", define)

    def open_file(path, mode):
        return open(path, mode, encoding="utf-8", newline="\n" if "w" in mode else None)

    tensorflow = types.ModuleType("tensorflow")
    tensorflow.flags = flags
    tensorflow.gfile = types.SimpleNamespace(GFile=open_file, Open=open_file)
    quiet = logging.Logger("original", logging.CRITICAL)
    tensorflow.logging = types.SimpleNamespace(info=quiet.info, warning=quiet.warning)
    six = types.ModuleType("six")
    six.PY2, six.PY3, six.iteritems = False, True, lambda table: iter(table.items())
    stand_ins = {
        "tensorflow": tensorflow,
        "six": six,
        "modeling": types.ModuleType("modeling"),
        "optimization": types.ModuleType("optimization"),
    }
    names = [*stand_ins, "tokenization"]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(stand_ins)
    try:
        sys.modules["tokenization"] = load_script(pathlib.Path(checkout) / "tokenization.py")
        return load_script(pathlib.Path(checkout) / "run_squad.py")
    finally:
        for name, value in before.items():
            if value is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = value


def load_script(path) -> types.ModuleType:
    """Import a file by its path."""
    name = "original_" + pathlib.Path(path).stem.replace("-", "_").replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What both sides are given.


def select(name: str, folder: pathlib.Path) -> dict:
    """Content of a data set's file with some of its questions only."""
    if name.endswith(".json"):
        return json.loads((HERE / name).read_text(encoding="utf-8"))
    source, rule = {
        "first": ("dev-v1.1.subset.json", lambda context, qa: ["first"]),
        "first_v2": ("dev-v2.0.subset.json", _by_answerable),
        "half_impossible": ("train-v2.0.subset.json", _by_answerable),
        "awkward_dev": ("dev-v1.1.subset.json", _awkward),
        "awkward_train": ("train-v1.1.subset.json", _awkward),
    }[name]
    content = json.loads((folder / source).read_text(encoding="utf-8"))
    limit = NUM_EACH[name.partition("_")[0] if name.startswith("awkward") else name]
    counts: dict[str, int] = {}
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            kept = []
            for qa in paragraph["qas"]:
                kinds = rule(paragraph["context"], qa)
                if any(counts.get(kind, 0) < limit for kind in kinds):
                    kept.append(qa)
                    for kind in kinds:
                        counts[kind] = counts.get(kind, 0) + 1
            paragraph["qas"] = kept
    return content


def _by_answerable(context, qa):
    return ["impossible" if qa["is_impossible"] else "answerable"]


def _awkward(context, qa):
    """In which ways a question is likely to go wrong."""
    answer = qa["answers"][0]
    start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    kinds = {
        "letters": not (answer["text"] + qa["question"]).isascii(),
        "before": start > 0 and not context[start - 1].isspace(),
        "after": end < len(context) and not (context[end].isspace() or context[end] in ".,"),
        "long context": len(context.split()) > 300,
        "long question": len(qa["question"].split()) > 25,
        "long answer": len(answer["text"].split()) > 20,
        "repeated": context.count(answer["text"]) > 5,
        "missing": context[start:end] != answer["text"],
    }
    return [kind for kind, is_so in kinds.items() if is_so]


def logits(lengths, max_seq_length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up logits float32 [N, L]: exact in binary, with many ties, and a hill in each row.

    Args:
        lengths: tokens of each window that are not padding.
        max_seq_length: L.
        seed: of RandomState, whose numbers never change.
    """
    random = np.random.RandomState(seed)
    count = len(lengths)
    position = np.arange(max_seq_length)
    peak = (random.randint(0, 1 << 20, count) % np.asarray(lengths, np.int64))[:, None]
    rows = []
    for shift in (0, random.randint(0, 9, (count, 1))):
        hill = np.maximum(12 - np.abs(position - peak - shift), 0) * 64
        noise = random.randint(-512, 513, (count, max_seq_length))
        noise[::3] = noise[::3] // 128 * 128  # every third row has few distinct values
        values = hill + noise
        values[:, 0] += random.randint(0, 1024, count)
        rows.append((values / 128).astype(np.float32))
    return rows[0], rows[1]


def case_seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def digest(value) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# What the original makes of it.


def canonical_feature(feature) -> dict:
    """All that an original feature holds; positions are 0 where it has none."""
    offset = feature.tokens.index("[SEP]") + 1
    # A question that holds [SEP] itself cannot come up: it would be cut into pieces.
    positions = list(range(offset, len(feature.tokens) - 1))
    if [*feature.token_to_orig_map] != positions or [*feature.token_is_max_context] != positions:
        raise AssertionError("the maps must cover the document's pieces and nothing else")
    return {
        "unique_id": feature.unique_id,
        "example": feature.example_index,
        "tokens": " ".join(feature.tokens),
        "input_ids": feature.input_ids,
        "input_mask": feature.input_mask,
        "segment_ids": feature.segment_ids,
        "doc_offset": offset,
        "words": list(feature.token_to_orig_map.values()),
        "is_max_context": [int(value) for value in feature.token_is_max_context.values()],
        "start_position": feature.start_position or 0,
        "end_position": feature.end_position or 0,
        "is_impossible": int(feature.is_impossible),
    }


def compact(feature: dict) -> dict:
    """Return a canonical feature for a committed file: without what follows from the rest."""
    kept = {k: v for k, v in feature.items() if not k.startswith(("input_", "segment_"))}
    kept["words"] = " ".join(map(str, feature["words"]))
    kept["is_max_context"] = "".join(map(str, feature["is_max_context"]))
    kept["rest"] = digest([feature[k] for k in ("input_ids", "input_mask", "segment_ids")])[:16]
    return kept


def canonical_answer(answer: str, nbest: list[dict], null_odds: float | None) -> dict:
    """Return a question's final and n-best answers; probabilities rounded, as libm differs."""
    return {
        "answer": answer,
        "nbest": [
            [row["text"], round(row["probability"], 9), row["start_logit"], row["end_logit"]]
            for row in nbest
        ],
        "null_odds": null_odds,
    }


def run_original(run_squad, case: Case, path, vocab_file, seed: int, logits=logits):
    """Return the original's examples, features and canonical answers (None where it fails)."""
    run_squad.FLAGS.version_2_with_negative = case.version_2
    run_squad.FLAGS.null_score_diff_threshold = case.threshold
    tokenizer = run_squad.tokenization.FullTokenizer(
        str(vocab_file), do_lower_case=case.casing == "uncased"
    )
    examples = run_squad.read_squad_examples(str(path), case.is_training)
    features = []
    max_seq_length, doc_stride, max_query_length = case.lengths
    run_squad.convert_examples_to_features(
        examples,
        tokenizer,
        max_seq_length,
        doc_stride,
        max_query_length,
        case.is_training,
        features.append,
    )
    starts, ends = logits([len(f.tokens) for f in features], max_seq_length, seed)
    answers = []
    by_example: dict[int, list] = {}
    for feature, start, end in zip(features, starts, ends, strict=True):
        result = run_squad.RawResult(feature.unique_id, start.tolist(), end.tolist())
        by_example.setdefault(feature.example_index, []).append((feature, result))
    with tempfile.TemporaryDirectory() as folder:
        for index, example in enumerate(examples):
            pairs = by_example.get(index, [])
            answers.append(_original_answer(run_squad, case, example, pairs, folder))
    return examples, features, answers


def _original_answer(run_squad, case, example, pairs, folder):
    features = []
    for feature, _ in pairs:
        feature = copy.copy(feature)
        feature.example_index = 0
        features.append(feature)
    paths = [str(pathlib.Path(folder, name)) for name in ("answers", "nbest", "odds")]
    try:
        run_squad.write_predictions(
            [example],
            features,
            [result for _, result in pairs],
            case.n_best_size,
            case.max_answer_length,
            case.casing == "uncased",
            *paths,
        )
    except (AttributeError, IndexError):  # only the null entry (issue 476), or no window at all
        return None
    (answer,), (nbest,) = (
        json.loads(pathlib.Path(path).read_text(encoding="utf-8")).values() for path in paths[:2]
    )
    odds = None
    if case.version_2:
        (odds,) = json.loads(pathlib.Path(paths[2]).read_text(encoding="utf-8")).values()
    return canonical_answer(answer, nbest, odds)


def odd_predictions(content: dict) -> tuple[dict[str, str], dict[str, float]]:
    """Answers of all questions of a file, and made-up odds of no answer, with ties."""
    answers, odds = {}, {}
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                reference = qa["answers"][0]["text"] if qa["answers"] else ""
                answers[qa["id"]] = ODD_ANSWERS.get(qa["id"], reference)
    for name in sorted(answers, key=digest):  # an order that is not the file's
        value = int(digest(name)[:2], 16)
        odds[name] = (value % 7 - 3) * 0.5 - 0.25 * (answers[name] != "")
    return answers, odds


def official_scores(evaluate_v1, evaluate_v2) -> dict:
    """Return what the official scripts say of `odd_predictions`."""
    content = select("v1.json", HERE)
    answers, _ = odd_predictions(content)
    scores = {"v1": load_script(evaluate_v1).evaluate(content["data"], answers)}
    content = select("v2.json", HERE)
    answers, odds = odd_predictions(content)
    for name, threshold in (("v2", 1.0), ("v2_low", -0.5)):
        scores[name] = official_v2(load_script(evaluate_v2), content, answers, odds, threshold)
    scores["v2_without_odds"] = official_v2(load_script(evaluate_v2), content, answers, None, 1.0)
    return scores


def official_v2(script, content, answers, odds, threshold) -> dict:
    """Run the main function of the official script of version 2.0."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"data_file": content, "pred_file": answers, "na_prob_file": odds}
        paths = {}
        for name, value in values.items():
            paths[name] = None
            if value is not None:
                paths[name] = pathlib.Path(folder, name)
                paths[name].write_text(json.dumps(value), encoding="utf-8")
        out = pathlib.Path(folder, "out")
        script.OPTS = types.SimpleNamespace(
            **paths, na_prob_thresh=threshold, out_file=out, out_image_dir=None, verbose=False
        )
        script.main()
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    """Run every case and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bert", "data", "evaluate_v1", "evaluate_v2"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    run_squad = load_original(arguments.bert)
    own, digests = {}, {}
    for name, case in OWN_CASES.items():
        vocab = HERE / f"vocab_{case.casing}.txt"
        examples, features, answers = run_original(
            run_squad, case, HERE / case.data, vocab, case_seed(name)
        )
        own[name] = {
            "examples": [
                [e.qas_id, e.orig_answer_text, e.start_position, e.end_position, e.is_impossible]
                for e in examples
            ],
            "features": [digest(canonical_feature(f)) for f in features],
            "answers": answers,
        }
        if case.is_training:
            own[name]["features"] = [compact(canonical_feature(f)) for f in features]
        else:
            own[name]["answers"] = [answer and digest(answer) for answer in answers]
    own["scores"] = official_scores(arguments.evaluate_v1, arguments.evaluate_v2)
    for name, case in REAL_CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "squad.json")
            path.write_text(json.dumps(select(case.data, arguments.data / "squad")), "utf-8")
            vocab = arguments.data / "vocab" / f"bert-base-{case.casing}-vocab.txt"
            examples, features, answers = run_original(
                run_squad, case, path, vocab, case_seed(name)
            )
        digests[name] = {
            "examples": len(examples),
            "features": [digest(canonical_feature(f)) for f in features],
            "answers": [answer and digest(answer) for answer in answers],
        }
    for name, value in (("own.json", own), ("digests.json", digests)):
        lines = json.dumps(value, indent=0, separators=(",", ":"))
        (HERE / name).write_text(lines + "\n", encoding="utf-8")
        print(name, len(lines))
    for name, value in (own | digests).items():
        if name != "scores":
            failed = value["answers"].count(None)
            print(name, len(value["features"]), len(value["answers"]), failed)


if __name__ == "__main__":
    main()
