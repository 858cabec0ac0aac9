"""Records of small texts, which every runner of data preparation must make byte for byte."""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from data_prep.corpus import text_files
from data_prep.pretraining import cluster_jobs, cluster_steps, local_runner, units
from data_prep.pretraining.options import Options, shard_names

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pretraining_data"
VOCABULARY = GOLDEN / "tiny_vocab_uncased.txt"


def make_steps_small(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Let little text give many pieces, bundles, blocks, files of pairs and chunks.

    Args:
        set_attribute: setattr, or that of a fixture which sets back what was there.
    """
    set_attribute(text_files, "PIECE_BYTES", 601)
    set_attribute(cluster_jobs, "PIECE_BYTES", 397)
    set_attribute(cluster_steps, "BUNDLE_PIECES", 2)
    set_attribute(units, "BLOCK_SENTENCES", 41)
    set_attribute(units, "LOCKSTEP_DOCUMENTS", 31)
    set_attribute(units, "SHUFFLED_PAIRS", 19)
    set_attribute(units, "CHUNK_INSTANCES", 29)
    set_attribute(units, "BATCH_TOKENS", 47 * 13)


def options_of(folder, **changes) -> Options:
    """Return options of records of the golden texts in three files of a folder."""
    return Options(
        **{
            "input_files": (str(GOLDEN / "tiny_1.txt"), str(GOLDEN / "tiny_2.txt")),
            "output_files": tuple(f"{folder}/{i}.tfrecord" for i in range(3)),
            "vocab_file": str(VOCABULARY),
            "max_seq_length": 47,
            "max_predictions_per_seq": 7,
            "dupe_factor": 3,
            **changes,
        }
    )


def files_of(folder) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the bytes of all but the manifests, and these, which must agree but for the folder."""
    found = {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
    manifests = {}
    for name in [name for name in found if name.endswith(".json")]:
        manifests[name] = json.loads(found.pop(name))
        del manifests[name]["flags"]
    return found, manifests


def longer_run(folder: pathlib.Path) -> tuple[list[str], dict[str, bytes]]:
    """Return a command without runner and output, on two megabytes of text, and its records."""
    text = folder / "text.txt"
    text.write_bytes((GOLDEN / "tiny_1.txt").read_bytes() * 1201)
    outputs = shard_names(str(folder / "x.tfrecord"), 3)
    options = options_of(
        folder,
        input_files=(str(text),),
        output_files=outputs,
        dupe_factor=2,
        max_seq_length=128,
        max_predictions_per_seq=20,
    )
    local_runner.create_pretraining_data(options, 1, show_progress=False)
    command = [sys.executable, "data_prep/create_pretraining_data.py", f"--input_file={text}"]
    command += [f"--vocab_file={VOCABULARY}", "--num_shards=3", "--dupe_factor=2"]
    return command, {pathlib.Path(path).name: pathlib.Path(path).read_bytes() for path in outputs}
