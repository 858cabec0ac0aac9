r"""Time create_pretraining_data.py against google-research/bert's, whole commands side by side.

    python experiments/benchmarks/pretraining_data.py --input_file=corpus/wiki.txt \
      --vocab_file=bert-base-uncased-vocab.txt --bert_checkout=PATH_TO_GOOGLE_RESEARCH_BERT

Both get the same flags. The original runs on the first --original_fraction of the text (cut at a
document) and on a twentieth of that, and its figures for the whole lie on the line through the two
(by instances written), as the output says; ours runs on the whole. Wall time, CPU time and peak
memory are of the process with all its children. The original runs unchanged on the installed
TensorFlow, under whose compat.v1 its names still exist.
"""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Figures

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_RUN_ORIGINAL = """
import runpy, sys
import tensorflow.compat.v1
sys.modules["tensorflow"] = tensorflow.compat.v1
script = sys.argv.pop(1)
sys.path.insert(0, script.rsplit("/", 1)[0])
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""
_SAMPLE_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    input_file: str = option(None, "Text, one sentence a line.", required=True)
    vocab_file: str = option(None, "Vocabulary.", required=True)
    bert_checkout: str | None = option(None, "Clone of google-research/bert; none: ours only.")
    original_fraction: float = option(0.1, "Of the text, for the original.", minimum=0, maximum=1)
    num_workers: int = option(0, "Processes of ours; 0 for one per core.", minimum=0)
    repeats: int = option(1, "Runs of ours; the fastest counts.", minimum=1)
    with_flags: tuple[str, ...] = option(
        ("", "--do_whole_word_mask=True"), "Flags of both, one comparison each.", repeated=True
    )
    work_dir: str | None = option(None, "Folder for the output; default a temporary one.")


def _first_documents(source: pathlib.Path, target: pathlib.Path, fraction: float) -> None:
    """Write the first documents of a text, about a fraction of its bytes."""
    left = source.stat().st_size * fraction
    with open(source, "rb") as reader, open(target, "wb") as writer:
        for line in reader:
            left -= writer.write(line)
            if left <= 0 and not line.strip():
                break


def measure(command: Sequence[str]) -> dict[str, float]:
    """Run a command.

    Args:
        command: program and arguments.

    Returns:
        wall_seconds, cpu_seconds (user and system, children included), peak_bytes (largest sum of
        the proportional set sizes of the process and its children, sampled) and peak_process_bytes
        (the largest resident set of any one of them).

    Raises:
        RuntimeError: the command failed; its last output is in the message.
    """
    import psutil

    with tempfile.TemporaryFile() as output:
        begin, peak_bytes = time.monotonic(), 0
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY)  # noqa: S603
        parent = psutil.Process(process.pid)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            with contextlib.suppress(psutil.Error):  # one of them has ended meanwhile
                family = [parent, *parent.children(recursive=True)]
                sizes = [member.memory_full_info().pss for member in family]
                peak_bytes = max(peak_bytes, sum(sizes))
            time.sleep(_SAMPLE_SECONDS)
        wall = time.monotonic() - begin
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            tail = output.read().decode("utf-8", "replace")[-2000:]
            raise RuntimeError(f"{' '.join(command[:4])} ... failed:\n{tail}")
    return {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak_bytes,
        "peak_process_bytes": usage.ru_maxrss * 1024,
    }


def _count_records(path: pathlib.Path) -> int:
    """Return the number of records of a plain TFRecord file, by hopping over them."""
    count, size = 0, path.stat().st_size
    with open(path, "rb") as stream:
        while stream.tell() < size:
            stream.seek(int.from_bytes(stream.read(8), "little") + 8, os.SEEK_CUR)
            count += 1
    return count


def _extrapolate(small: Figures, large: Figures, instances: int) -> Figures:
    """Return the figures for so many instances, on the line through two measurements.

    What does not grow with the text (starting TensorFlow) is not multiplied so.
    """
    grown = (instances - large["instances"]) / (large["instances"] - small["instances"])
    scaled = {name: large[name] + grown * (large[name] - small[name]) for name in large}
    return {**scaled, "instances": instances}


class _Comparison:
    """Runs both with the same flags, and prints a row for each run."""

    def __init__(self, options: Options, extra: str, folder: pathlib.Path):
        self.options = options
        self.source = pathlib.Path(options.input_file).resolve()
        self.folder, self.output = folder, folder / "records.tfrecord"
        self.common = [
            f"--vocab_file={os.path.abspath(options.vocab_file)}",
            f"--output_file={self.output}",
            *extra.split(),
        ]
        print(f"\nflags: {extra or '(defaults)'}")
        self.table = harness.Table(
            "name wall_seconds:.1f cpu_seconds:.1f instances:,.0f peak_mib:.0f peak_process_mib:.0f"
        )

    def _print(self, name: str, figures: Figures) -> None:
        sizes = {f"{key}_mib": figures[f"{key}_bytes"] / 2**20 for key in ("peak", "peak_process")}
        self.table.row({"name": name, **sizes, **figures})

    def _measure(self, name: str, text: pathlib.Path, *command: str) -> Figures:
        figures = measure([sys.executable, *command, f"--input_file={text}", *self.common])
        figures["instances"] = _count_records(self.output)
        self.output.unlink()
        self._print(name, figures)
        return figures

    def ours(self) -> Figures:
        """Run ours on the whole text; return the figures of the fastest run."""
        script = "data_prep/create_pretraining_data.py"
        workers = f"--num_workers={self.options.num_workers}"
        runs = [
            self._measure("ours, whole text", self.source, script, workers)
            for _ in range(self.options.repeats)
        ]
        return min(runs, key=lambda run: run["wall_seconds"])

    def original(self, checkout: str, instances: int) -> tuple[list[Figures], Figures]:
        """Run the original on two parts of the text; return their figures and those scaled."""
        script = os.path.abspath(os.path.join(checkout, "create_pretraining_data.py"))
        parts = []
        for fraction in (self.options.original_fraction / 20, self.options.original_fraction):
            part = self.folder / "part.txt"
            _first_documents(self.source, part, fraction)
            share = part.stat().st_size / self.source.stat().st_size
            name = f"original, {share:.2%} of the text"
            parts.append(self._measure(name, part, "-c", _RUN_ORIGINAL, script))
        scaled = _extrapolate(parts[0], parts[1], instances)
        self._print("original, scaled to the whole", scaled)
        return parts, scaled


def compare(options: Options) -> None:
    """Run the comparisons and print their tables."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = []
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        for extra in options.with_flags:
            comparison = _Comparison(options, extra, pathlib.Path(folder))
            result: Figures = {"flags": extra, "ours": comparison.ours()}
            if options.bert_checkout:
                parts, scaled = comparison.original(
                    options.bert_checkout, result["ours"]["instances"]
                )
                result.update(original_parts=parts, original_scaled=scaled)
                for name in ("wall_seconds", "cpu_seconds"):
                    ratio = result[f"{name}_ratio"] = scaled[name] / result["ours"][name]
                    print(f"{name.split('_')[0]} time, original / ours: {ratio:.1f}")
            results.append(result)
    harness.write_figures(options, results=results)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare)
