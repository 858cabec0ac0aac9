r"""Speed of our tokenizer beside the original's and `tokenizers`', on one text in one run.

    python experiments/benchmarks/tokenization.py --input_file=wikipedia_en_extract.txt.gz \
      --vocab_file=bert-base-uncased-vocab.txt --original=PATH/TO/google-research/bert

Each tokenizer makes ids of the text line by line; ours also of all lines in one call, as
create_pretraining_data.py does with each MiB; the one in the TensorFlow graph, where
tensorflow_text is installed, takes batches of lines and one thread. Rates are in MB (10^6 bytes of
UTF-8) per second of CPU time of the process, all its threads counted: other programs disturb it
less than wall time. The slow ones, which is all but ours from a memo, get the first
--peer_megabytes of the text.
"""

import collections
import dataclasses
import gzip
import os
import pathlib
import sys
import types
from collections.abc import Callable
from unittest import mock

from bert_tf.options import option
from bert_tf.tokenization.wordpiece import DEFAULT_MAX_MEMO_BYTES, FullTokenizer
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Contender, Figures


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    input_file: str = option(None, "Text; .gz is read.", required=True)
    vocab_file: str = option(None, "Vocabulary.", required=True)
    do_lower_case: bool = option(True, "Whether the vocabulary is uncased.")
    original: str | None = option(None, "Checkout of google-research/bert to compare with.")
    megabytes: float = option(1e9, "Megabytes of the text to use.", minimum=0)
    peer_megabytes: float = option(4.0, "Megabytes for the slow ones.", minimum=0)
    warm_rounds: int = option(3, "Rounds over the same text.", minimum=1)
    graph_batch_size: int = option(1000, "Lines that the graph gets at a time.", minimum=1)
    max_memo_bytes: int = option(DEFAULT_MAX_MEMO_BYTES, "Bound on our memo.")


def _load_original(checkout: str) -> types.ModuleType:
    """Import the original's tokenization.py, with a stand-in for the one TF 1 function it uses."""
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.gfile = types.SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        GFile=lambda path, mode: open(path, mode, encoding="utf-8", newline="\n")
    )
    source = pathlib.Path(checkout, "tokenization.py").read_text(encoding="utf-8")
    module = types.ModuleType("original_tokenization")
    with mock.patch.dict(sys.modules, tensorflow=tensorflow):
        exec(compile(source, "tokenization.py", "exec"), module.__dict__)
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


class _Measurement:
    """The texts, our tokenizer, and the figures so far."""

    def __init__(self, options: Options):
        self.options = options
        self.lines = _first(_read_lines(options.input_file), options.megabytes)
        self.few = _first(self.lines, options.peer_megabytes)
        self.ours = self.our_tokenizer(options.max_memo_bytes)
        self.results: dict[str, Figures] = {}
        self.table = harness.Table(
            "name megabytes_per_cpu_second:.2f megabytes_per_wall_second:.2f megabytes:.1f"
        )

    def our_tokenizer(self, max_memo_bytes: int) -> FullTokenizer:
        vocab_file, lower = self.options.vocab_file, self.options.do_lower_case
        return FullTokenizer(vocab_file, lower, max_memo_bytes=max_memo_bytes)

    def measure(self, name: str, lines: list[str], run: Callable[[], object]) -> None:
        """Measure a call that goes through lines; print its rates and keep them."""
        megabytes = sum(len(line.encode()) + 1 for line in lines) / 1e6
        with harness.timed() as spent:
            run()
        self.results[name] = {
            "megabytes": round(megabytes, 2),
            "megabytes_per_cpu_second": round(megabytes / spent.cpu, 2),
            "megabytes_per_wall_second": round(megabytes / spent.wall, 2),
        }
        self.table.row({"name": name, **self.results[name]})

    def measure_lines(self, name: str, lines: list[str], encode: Callable[[str], object]) -> None:
        """Measure a tokenizer that takes line by line."""
        self.measure(name, lines, lambda: collections.deque(map(encode, lines), maxlen=0))

    def count_differences(self, name: str, ids: list[list[int]]) -> None:
        """Print how many lines have other ids than ours."""
        pairs = zip(ids, self.few, strict=True)
        different = sum(theirs != self.ours.encode(line) for theirs, line in pairs)
        print(f"lines that differ {name}: {different} of {len(self.few)}")


def _measure_ours(run: _Measurement) -> None:
    run.measure_lines("ours, cold", run.lines, run.ours.encode)
    for number in range(run.options.warm_rounds):
        run.measure_lines(f"ours, warm, round {number + 1}", run.lines, run.ours.encode)
    many = run.our_tokenizer(run.options.max_memo_bytes)
    for name in ("cold", "warm"):
        run.measure(
            f"ours, many lines at once, {name}", run.lines, lambda: many.encode_lines(run.lines)
        )
    run.measure_lines("ours, with offsets", run.few, run.ours.tokenize_with_offsets)
    run.measure_lines("ours, without memo", run.few, run.our_tokenizer(0).encode)


def _measure_graph(run: _Measurement) -> None:
    import tensorflow as tf

    from bert_tf.tokenization.graph_tokenizer import TextToIds

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    graph = TextToIds(run.options.vocab_file, run.options.do_lower_case)
    signature = [tf.TensorSpec([None], tf.string)]
    to_ids = tf.function(graph.__call__, input_signature=signature)
    to_pieces = tf.function(graph.tokenize_with_offsets, input_signature=signature)
    size = run.options.graph_batch_size
    batches = [tf.constant(run.few[start : start + size]) for start in range(0, len(run.few), size)]
    run.count_differences(
        "in the graph", [ids for batch in batches for ids in to_ids(batch).to_list()]
    )
    for name, encode in (("in the graph", to_ids), ("in the graph, with offsets", to_pieces)):
        encode(batches[0])
        for _ in range(run.options.warm_rounds):
            run.measure(name, run.few, lambda encode=encode: [encode(batch) for batch in batches])


def _measure_original(run: _Measurement) -> None:
    if not run.options.original:
        return
    original = _load_original(run.options.original).FullTokenizer(
        run.options.vocab_file, run.options.do_lower_case
    )

    def encode(line: str) -> list[int]:
        return original.convert_tokens_to_ids(original.tokenize(line))

    run.count_differences("from the original", [encode(line) for line in run.few])
    run.measure_lines("google-research/bert", run.few, encode)


def _measure_tokenizers(run: _Measurement) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import BertWordPieceTokenizer

    fast = BertWordPieceTokenizer(run.options.vocab_file, lowercase=run.options.do_lower_case)

    def batches() -> None:
        for start in range(0, len(run.few), 1000):
            batch = run.few[start : start + 1000]
            for encoding in fast.encode_batch(batch, add_special_tokens=False):
                encoding.ids  # noqa: B018

    def encode(line: str) -> list[int]:
        return fast.encode(line, add_special_tokens=False).ids

    run.measure_lines("tokenizers, line by line", run.few, encode)
    run.measure("tokenizers, batches of 1000", run.few, batches)


CONTENDERS = {
    "ours": Contender(_measure_ours),
    "in the graph": Contender(_measure_graph, ("tensorflow_text",)),
    "google-research/bert": Contender(_measure_original),
    "tokenizers": Contender(_measure_tokenizers, ("tokenizers",)),
}


def compare(options: Options) -> None:
    """Measure all tokenizers, in this process: ours from the same memo, round by round."""
    run = _Measurement(options)
    for contender in harness.installed(CONTENDERS).values():
        contender.prepare(run)
    harness.write_figures(options, results=run.results)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare)
