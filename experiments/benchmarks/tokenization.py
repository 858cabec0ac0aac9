"""Speed of our tokenizer beside the original's and `tokenizers`', on one text in one run.

    python experiments/benchmarks/tokenization.py --input_file=wikipedia_en_extract.txt.gz \
      --vocab_file=bert-base-uncased-vocab.txt --original=PATH/TO/google-research/bert

Each tokenizer makes ids of the text line by line; the one in the TensorFlow graph, where
tensorflow_text is installed, takes batches of lines and one thread. Rates are in MB (10^6 bytes of
UTF-8) per second of CPU time of the process, all its threads counted: other programs disturb it
less than wall time. The slow ones, which is all but ours from a memo, get the first
--peer_megabytes of the text.
"""

import contextlib
import gzip
import json
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable, Sequence

from absl import app, flags

from bert_tf.tokenization.wordpiece import DEFAULT_MAX_MEMO_BYTES, FullTokenizer


def _load_original(checkout: str) -> types.ModuleType:
    """Import the original's tokenization.py, with a stand-in for the one TF 1 function it uses."""
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.gfile = types.SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        GFile=lambda path, mode: open(path, mode, encoding="utf-8", newline="\n")
    )
    source = pathlib.Path(checkout, "tokenization.py").read_text(encoding="utf-8")
    module = types.ModuleType("original_tokenization")
    before = sys.modules.get("tensorflow")
    sys.modules["tensorflow"] = tensorflow
    try:
        exec(compile(source, "tokenization.py", "exec"), module.__dict__)
    finally:
        if before is None:
            del sys.modules["tensorflow"]
        else:
            sys.modules["tensorflow"] = before
    return module


def _read_lines(path: str) -> list[str]:
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as stream:
        return stream.read().decode("utf-8", "ignore").split("\n")


def _first(lines: list[str], megabytes: float) -> list[str]:
    """Return the first lines, so many that they hold about so many megabytes."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line.encode()) + 1
        if size >= megabytes * 1e6:
            return lines[: number + 1]
    return lines


def _measure(lines: list[str], run: Callable[[], object]) -> dict[str, float]:
    """Megabytes of the lines, and the rates at which a call goes through them."""
    megabytes = sum(len(line.encode()) + 1 for line in lines) / 1e6
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "megabytes": round(megabytes, 2),
        "megabytes_per_cpu_second": round(megabytes / cpu, 2),
        "megabytes_per_wall_second": round(megabytes / wall, 2),
    }


def _report(results: dict[str, dict[str, float]], name: str, result: dict[str, float]) -> None:
    """Print one line and keep its figures."""
    results[name] = result
    print(
        f"{name:28} {result['megabytes_per_cpu_second']:8.2f} MB per CPU second, "
        f"{result['megabytes_per_wall_second']:6.2f} per wall second "
        f"({result['megabytes']:.1f} MB)",
        flush=True,
    )


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    lines = _first(_read_lines(values.input_file), values.megabytes)
    few = _first(lines, values.peer_megabytes)
    results: dict[str, dict[str, float]] = {}

    def report(name: str, lines: list[str], encode: Callable[[str], object]) -> None:
        def run() -> None:
            for line in lines:
                encode(line)

        _report(results, name, _measure(lines, run))

    ours = FullTokenizer(
        values.vocab_file, values.do_lower_case, max_memo_bytes=values.max_memo_bytes
    )
    report("ours, cold", lines, ours.encode)
    for number in range(values.warm_rounds):
        report(f"ours, warm, round {number + 1}", lines, ours.encode)
    report("ours, with offsets", few, ours.tokenize_with_offsets)
    bare = FullTokenizer(values.vocab_file, values.do_lower_case, max_memo_bytes=0)
    report("ours, without memo", few, bare.encode)

    with contextlib.suppress(ImportError):
        import tensorflow as tf

        from bert_tf.tokenization.graph_tokenizer import TextToIds

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        graph = TextToIds(values.vocab_file, values.do_lower_case)
        signature = [tf.TensorSpec([None], tf.string)]
        graph_ids = tf.function(graph.__call__, input_signature=signature)
        graph_pieces = tf.function(graph.tokenize_with_offsets, input_signature=signature)
        size = values.graph_batch_size
        batches = [tf.constant(few[start : start + size]) for start in range(0, len(few), size)]
        found = [ids for batch in batches for ids in graph_ids(batch).to_list()]
        different = sum(ids != ours.encode(line) for ids, line in zip(found, few, strict=True))
        print(f"lines that differ in the graph: {different} of {len(few)}")
        for name, run in (("", graph_ids), (", with offsets", graph_pieces)):
            run(batches[0])
            for _ in range(values.warm_rounds):
                result = _measure(few, lambda run=run: [run(batch) for batch in batches])
                _report(results, f"in the graph{name}", result)

    if values.original:
        theirs = _load_original(values.original).FullTokenizer(
            values.vocab_file, values.do_lower_case
        )

        def original_encode(line: str) -> list[int]:
            return theirs.convert_tokens_to_ids(theirs.tokenize(line))

        different = sum(original_encode(line) != ours.encode(line) for line in few)
        print(f"lines that differ from the original: {different} of {len(few)}")
        report("google-research/bert", few, original_encode)
    with contextlib.suppress(ImportError):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import BertWordPieceTokenizer

        fast = BertWordPieceTokenizer(values.vocab_file, lowercase=values.do_lower_case)

        def fast_batches() -> None:
            for start in range(0, len(few), 1000):
                for encoding in fast.encode_batch(
                    few[start : start + 1000], add_special_tokens=False
                ):
                    encoding.ids  # noqa: B018

        report(
            "tokenizers, line by line",
            few,
            lambda line: fast.encode(line, add_special_tokens=False).ids,
        )
        _report(results, "tokenizers, batches of 1000", _measure(few, fast_batches))
    if values.output_file:
        pathlib.Path(values.output_file).write_text(json.dumps(results, indent=2) + "\n")


def _define_flags() -> None:
    flags.DEFINE_string("input_file", None, "Text; .gz is read.", required=True)
    flags.DEFINE_string("vocab_file", None, "Vocabulary.", required=True)
    flags.DEFINE_bool("do_lower_case", True, "Whether the vocabulary is uncased.")
    flags.DEFINE_string("original", None, "Checkout of google-research/bert to compare with.")
    flags.DEFINE_float("megabytes", 1e9, "Megabytes of the text to use.", lower_bound=0)
    flags.DEFINE_float("peer_megabytes", 4, "Megabytes for the slow ones.", lower_bound=0)
    flags.DEFINE_integer("warm_rounds", 3, "Rounds over the same text.", lower_bound=1)
    flags.DEFINE_integer("graph_batch_size", 1000, "Lines that the graph gets at a time.")
    flags.DEFINE_integer("max_memo_bytes", DEFAULT_MAX_MEMO_BYTES, "Bound on our memo.")
    flags.DEFINE_string("output_file", None, "JSON file for the figures.")


if __name__ == "__main__":
    _define_flags()
    app.run(main)
