"""Print what large runs would cost: the tables of docs/scale.md, multiplied out of measured rates.

    python experiments/benchmarks/large_runs.py
    python experiments/benchmarks/large_runs.py --terabytes=0.5 --utilisations=0.4

Nothing is run: rates are those of experiments/LOG.md, on two shared cores, and a device's that of
its data sheet times a share of it that is assumed.
"""

import dataclasses
from collections.abc import Sequence

from bert_tf.config import BertConfig
from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.accelerator import flops_of_sequence
from experiments.benchmarks.pretraining_steps import Shapes

# Measured on this text; LOG.md, "Scale".
TEXT_BYTES, TEXT_TOKENS = 40.9e6, 8.72e6
TEXT_SENTENCES, TEXT_DOCUMENTS = 285_667, 2_201
EXTRACTION_SECONDS = 7.5
RECORDS_SECONDS = {
    ("local", 1): 13.5,
    ("local", 10): 26.2,
    ("Beam", 1): 17.5,
    ("Beam", 10): 42.5,
    # A quarter of what four times the text took, with Java's start; "Apache Spark in figures".
    ("Spark", 1): 21.9,
}
RECORDS = {1: 92_670, 10: 915_000}  # of 128 tokens, by dupe_factor
RECORD_BYTES, UNMASKED_BYTES = 830, 627
CHECKED_A_SECOND = 310_000  # records of 128 tokens, one core
READ_A_SECOND = (48_000, 67_000)  # the same, by pretraining_dataset
BYTES_A_WORD = 6.25
PART_BYTES = 20e9  # of text, that one command prepares
# What batches of like length leave to compute; LOG.md, "Batches of like length in pre-training".
BINS = {128: 0.938, 512: 0.784}
# CPU seconds of a step of BERT-Mini, 32 sequences of 128 tokens with 20 predictions, of one core;
# LOG.md, "bfloat16 on processors that have it".
STEP_SECONDS = {
    "float32": 1.707,
    "float32, `--jit_compile=pointwise`": 1.465,
    "bfloat16, `--jit_compile=pointwise`": 0.981,
}
STEP_SEQUENCES = 32
# The paper's schedule: a million steps of 256 sequences, nine in ten of 128 tokens.
SEQUENCES = {128: 230.4e6, 512: 25.6e6}
PREDICTIONS = {128: 20, 512: 77}
# Device -> peak FLOP/s of its data sheet, dense, 16 bit.
DEVICES = {
    "TPU v3 chip": 123e12,
    "V100": 125e12,
    "TPU v5e chip": 197e12,
    "A100": 312e12,
    "H100": 989e12,
}


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the plan."""

    terabytes: tuple[float, ...] = option(
        (0.0206, 1.0, 10.0), "Terabytes of text; 0.0206 is the paper's.", above=0
    )
    model_sizes: tuple[str, ...] = option(("base", "large"), "Keys of bert_tf.SIZES.")
    utilisations: tuple[float, ...] = option(
        (0.3, 0.5), "Shares of a device's peak.", above=0, maximum=1
    )


def rounded(value: float, unit: str = "") -> str:
    """Return a number with two or three digits, as "1.9" and "178"."""
    text = f"{value:,.0f}" if value >= 20 else f"{value:.2g}"
    return f"{text} {unit}".rstrip()


def data_preparation(text_bytes: float) -> dict[str, str]:
    """Return what each step costs of that much text, by its name."""
    factor = text_bytes / TEXT_BYTES
    hours = {key: seconds * factor / 3600 for key, seconds in RECORDS_SECONDS.items()}
    gigabytes = {
        "records of 128 on disk, `dupe_factor` 1": RECORDS[1] * RECORD_BYTES,
        "records of 128 on disk, `dupe_factor` 10": RECORDS[10] * RECORD_BYTES,
        "unmasked records (`--dynamic_masking`)": RECORDS[1] * UNMASKED_BYTES,
        "work folder: tokens, 2 bytes each": 2 * TEXT_TOKENS,
        "index, 8 bytes a sentence and document": 8 * (TEXT_SENTENCES + TEXT_DOCUMENTS),
    }
    return {
        "extraction, core-hours": rounded(EXTRACTION_SECONDS * factor / 3600),
        **{
            f"records, {runner}, `dupe_factor` {dupe}, core-hours": rounded(value)
            for (runner, dupe), value in hours.items()
        },
        **{name: rounded(value * factor / 1e9, "GB") for name, value in gigabytes.items()},
        "commands, of 20 GB each": str(max(1, round(text_bytes / PART_BYTES))),
        "check when a run starts, `dupe_factor` 1, core-minutes": rounded(
            RECORDS[1] * factor / CHECKED_A_SECOND / 60
        ),
    }


def shapes_of(size: str, length: int) -> Shapes:
    """Return the shapes of a sequence of the paper's schedule."""
    return Shapes(BertConfig.from_size(size, vocab_size=30522), 1, length, PREDICTIONS[length])


def pretraining_flops(size: str, bins: bool = False) -> float:
    """Return the operations of the paper's schedule, all sequences full or batched by length."""
    return sum(
        count * flops_of_sequence(shapes_of(size, length)) * (BINS[length] if bins else 1)
        for length, count in SEQUENCES.items()
    )


def device_hours(size: str, device: str, utilisation: float, bins: bool = False) -> float:
    """Return the hours of a device that the paper's schedule takes."""
    return pretraining_flops(size, bins) / (DEVICES[device] * utilisation) / 3600


def records_a_second(size: str, length: int, device: str, utilisation: float) -> float:
    """Return how many records a device asks for, where batches are of like length."""
    flops = flops_of_sequence(shapes_of(size, length)) * BINS[length]
    return DEVICES[device] * utilisation / flops


def core_flops(kind: str) -> float:
    """Return the operations a second of one core, by a step of `STEP_SECONDS`."""
    return STEP_SEQUENCES * flops_of_sequence(shapes_of("mini", 128)) / STEP_SECONDS[kind]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]


def tables(options: Options) -> list[list[str]]:
    """Return the tables: of data preparation, of devices and cores, of what devices ask for."""
    columns = [data_preparation(terabytes * 1e12) for terabytes in options.terabytes]
    words = [f"{t * 1e12 / BYTES_A_WORD / 1e9:,.1f} billion words" for t in options.terabytes]
    of_text = [[name, *(column[name] for column in columns)] for name in columns[0]]
    cases = [(size, bins) for size in options.model_sizes for bins in (False, True)]

    def hours(device: str, size: str, bins: bool) -> str:
        values = [rounded(device_hours(size, device, u, bins)) for u in options.utilisations]
        return f"{' / '.join(values)} h"

    shares = " / ".join(f"{u:.0%}" for u in options.utilisations)
    heads = [f"{s.upper()}{', bins' if bins else ''}, at {shares}" for s, bins in cases]
    of_devices = [
        [f"{device} ({peak / 1e12:.0f})", *(hours(device, *case) for case in cases)]
        for device, peak in DEVICES.items()
    ]
    of_cores = [
        [
            kind,
            f"{core_flops(kind) / 1e9:.0f}",
            *(rounded(pretraining_flops(s) / core_flops(kind) / 3600) for s in options.model_sizes),
        ]
        for kind in STEP_SECONDS
    ]
    asked = [
        [
            device,
            *(
                f"{records_a_second(size, length, device, options.utilisations[-1]):,.0f}"
                for size in options.model_sizes
                for length in SEQUENCES
            ),
        ]
        for device in DEVICES
    ]
    names = [f"{size.upper()}, {length}" for size in options.model_sizes for length in SEQUENCES]
    return [
        table(["", *words], of_text),
        table(["device (peak TFLOP/s)", *heads], of_devices),
        table(
            ["a core", "GFLOP/s", *(f"{s.upper()}, core-hours" for s in options.model_sizes)],
            of_cores,
        ),
        table([f"records/s at {options.utilisations[-1]:.0%}, bins", *names], asked),
    ]


def compare(options: Options) -> None:
    """Print the tables."""
    found = tables(options)
    print("\n\n".join("\n".join(lines) for lines in found))
    harness.write_figures(options, tables=found)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare)
