"""Times create_pretraining_data.py against google-research/bert's, whole commands side by side.

    python experiments/benchmarks/pretraining_data.py --input_file=corpus/wiki.txt \
      --vocab_file=bert-base-uncased-vocab.txt --bert_checkout=PATH_TO_GOOGLE_RESEARCH_BERT

Both get the same flags. The original runs on the first --original_fraction of the text (cut at a
document) and on a twentieth of that, and its figures for the whole lie on the line through the two
(by instances written), as the output says; ours runs on the whole. Wall time, CPU time and peak
memory are of the process with all its children. The original runs unchanged on the installed
TensorFlow, under whose compat.v1 its names still exist.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from absl import app, flags

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


def _define_flags() -> None:
    flags.DEFINE_string("input_file", None, "Text, one sentence a line.")
    flags.DEFINE_string("vocab_file", None, "Vocabulary.")
    flags.DEFINE_string("bert_checkout", None, "Clone of google-research/bert; none: ours only.")
    flags.DEFINE_float("original_fraction", 0.1, "Fraction of the text for the original.", 0, 1)
    flags.DEFINE_integer("num_workers", 0, "Processes of ours; 0 for one per core.", 0)
    flags.DEFINE_integer("repeats", 1, "Runs of ours; the fastest counts.", 1)
    flags.DEFINE_multi_string(
        "with_flags",
        ["", "--do_whole_word_mask=True"],
        "Flags given to both, one comparison each.",
    )
    flags.DEFINE_string("work_dir", None, "Folder for the output; default a temporary one.")
    flags.DEFINE_string("json_file", None, "Where to write the figures.")
    flags.mark_flags_as_required(["input_file", "vocab_file"])


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
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY)
        peak = {"sum": 0, "one": 0}
        done = threading.Event()

        def sample() -> None:
            parent = psutil.Process(process.pid)
            while not done.wait(_SAMPLE_SECONDS):
                try:
                    family = [parent, *parent.children(recursive=True)]
                    sizes = [member.memory_full_info().pss for member in family]
                except psutil.Error:
                    continue
                peak["sum"] = max(peak["sum"], sum(sizes))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        done.set()
        thread.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            tail = output.read().decode("utf-8", "replace")[-2000:]
            raise RuntimeError(f"{' '.join(command[:4])} ... failed:\n{tail}")
    return {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak["sum"],
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


def _row(name: str, figures: dict[str, float]) -> str:
    return (
        f"{name:34} {figures['wall_seconds']:9.1f} {figures['cpu_seconds']:9.1f} "
        f"{figures['instances']:10,.0f} {figures['peak_bytes'] / 2**20:9.0f} "
        f"{figures['peak_process_bytes'] / 2**20:9.0f}"
    )


def _extrapolate(
    small: dict[str, float], large: dict[str, float], instances: int
) -> dict[str, float]:
    """Figures for so many instances, on the line through two measurements.

    What does not grow with the text (starting TensorFlow) is not multiplied so.
    """
    grown = (instances - large["instances"]) / (large["instances"] - small["instances"])
    scaled = {name: large[name] + grown * (large[name] - small[name]) for name in large}
    return {**scaled, "instances": instances}


def _compare(values: flags.FlagValues, extra: str, folder: pathlib.Path) -> dict:
    """Run both with the same flags."""
    source = pathlib.Path(values.input_file).resolve()
    output = folder / "records.tfrecord"
    common = [
        f"--vocab_file={os.path.abspath(values.vocab_file)}",
        f"--output_file={output}",
        *extra.split(),
    ]
    print(f"\nflags: {extra or '(defaults)'}")
    print(f"{'':34} {'wall s':>9} {'cpu s':>9} {'instances':>10} {'peak MiB':>9} {'one MiB':>9}")
    ours = ["data_prep/create_pretraining_data.py", f"--num_workers={values.num_workers}"]
    runs = []
    for _ in range(values.repeats):
        figures = measure([sys.executable, *ours, f"--input_file={source}", *common])
        figures["instances"] = _count_records(output)
        output.unlink()
        runs.append(figures)
        print(_row("ours, whole text", figures), flush=True)
    result = {"flags": extra, "ours": min(runs, key=lambda run: run["wall_seconds"])}
    if values.bert_checkout:
        script = os.path.abspath(os.path.join(values.bert_checkout, "create_pretraining_data.py"))
        parts = []
        for fraction in (values.original_fraction / 20, values.original_fraction):
            part = folder / "part.txt"
            _first_documents(source, part, fraction)
            figures = measure(
                [sys.executable, "-c", _RUN_ORIGINAL, script, f"--input_file={part}", *common]
            )
            figures["instances"] = _count_records(output)
            output.unlink()
            share = part.stat().st_size / source.stat().st_size
            print(_row(f"original, {share:.2%} of the text", figures), flush=True)
            parts.append(figures)
        scaled = _extrapolate(parts[0], parts[1], result["ours"]["instances"])
        print(_row("original, scaled to the whole", scaled))
        result.update(original_parts=parts, original_scaled=scaled)
        for name in ("wall_seconds", "cpu_seconds"):
            result[f"{name}_ratio"] = scaled[name] / result["ours"][name]
            print(f"{name.split('_')[0]} time, original / ours: {result[f'{name}_ratio']:.1f}")
    return result


def main(argv: Sequence[str]) -> None:
    """Run the comparisons and print a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = []
    with tempfile.TemporaryDirectory(dir=values.work_dir) as folder:
        for extra in values.with_flags:
            results.append(_compare(values, extra, pathlib.Path(folder)))
    if values.json_file:
        with open(values.json_file, "w", encoding="utf-8") as stream:
            json.dump(results, stream, indent=1)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
