"""What a run that goes on was begun with, as its config.json tells."""

import dataclasses
import itertools
import pathlib
from typing import Any

from absl import logging

from bert_tf.files import absolute, read_json
from bert_tf.training.log import RUN_CONFIG_NAME
from bert_tf.weights.tensor_files import checkpoint_steps
from experiments.command_line.exit_status import InputError
from experiments.pretraining.options import TRAJECTORY, PretrainingOptions
from experiments.pretraining.plan import Phase, Plan


def begun_with(folder: pathlib.Path) -> dict[str, Any] | None:
    """Read the description of the run in a folder, if it has one and a checkpoint to go on from."""
    path = folder / RUN_CONFIG_NAME
    return read_json(path) if checkpoint_steps(folder) and path.exists() else None


def with_bins_of(begun: dict[str, Any] | None, plan: Plan, options: PretrainingOptions) -> Plan:
    """Return a plan whose batches are as wide as those of the run that it goes on with.

    By default widths follow from the device, and a run may go on with another. Batches of so many
    tokens have as many rows, where the replicas and accumulation steps of now can share these.

    Args:
        begun: of `begun_with`.
        plan: of the command that goes on.
        options: of this command, which may say another width.
    """
    if begun is None or options.pack_sequences:
        return plan
    bins = _bins_of(begun) if options.length_bins is None else None
    pairs = itertools.zip_longest(plan.phases, (bins or [])[: len(plan.phases)])
    phases = [_as_begun(begun, phase, length_bins) for phase, length_bins in pairs]
    return dataclasses.replace(plan, phases=phases)


def _as_begun(begun: dict[str, Any], phase: Phase, length_bins: int | None) -> Phase:
    """Return a phase with the shapes of batches that a run began with, where it can have them."""
    changes = {}
    multiple = begun.get("batch_multiple", 1)
    if multiple % phase.batch_multiple == 0:
        changes["batch_multiple"] = multiple
    # Batches of so many tokens cannot be as they come.
    if length_bins is not None and (length_bins or phase.batch_tokens is None):
        changes |= {"length_bins": length_bins} if _is_as_long(begun, phase) else {}
    return dataclasses.replace(phase, **changes)


def _is_as_long(begun: dict[str, Any], phase: Phase) -> bool:
    name = f"{phase.prefix}max_seq_length"
    return begun.get("flags", {}).get(name, phase.max_seq_length) == phase.max_seq_length


def _bins_of(begun: dict[str, Any]) -> list[int] | None:
    """Return the length_bins of a run's phases; None where it does not tell."""
    flags = begun.get("flags", {})
    if flags.get("pack_sequences"):
        return None  # its rows have one length
    if "length_bins" in begun:
        return begun["length_bins"]
    if flags.get("length_bins") is None and "length_bins" in flags:
        return None
    return [flags.get("length_bins", 0)] * 2  # earlier versions took batches as they come


def check_continuation(
    begun: dict[str, Any], description: dict[str, Any], options: PretrainingOptions
) -> None:
    """Compare a command with the one that began the run in its output folder.

    Args:
        begun: of `begun_with`.
        description: of the command that goes on.
        options: of this command.

    Raises:
        InputError: the model is another.
    """
    if begun.get("bert_config") != description["bert_config"]:
        raise InputError(
            f"{options.output_dir} holds a run of another model configuration; use another "
            "output_dir"
        )
    if options.do_train and begun.get("teacher") != description.get("teacher"):
        raise InputError(
            f"{options.output_dir} holds a run with another teacher, or without one, or of which "
            "other than now was learnt; use another output_dir"
        )
    if options.do_train:
        _warn_of_changes(begun, description)


def _warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn of what a command that goes on with a run has changed."""
    if _by_file(before.get("train_records", {})) != _by_file(now["train_records"]):
        logging.warning(
            "the training records are not those that this run began with: it goes on, but not "
            "as it would have"
        )
    was, is_now = before.get("flags", {}).get("init_checkpoint"), now["flags"]["init_checkpoint"]
    if is_now and (not was or absolute(was) != absolute(is_now)):
        logging.warning(
            "init_checkpoint is %r and was %r when this run began: it is not read, as the run "
            "goes on from its own weights; to begin with it use another output_dir",
            is_now,
            was,
        )
    not_in_earlier_versions = {"pack_sequences": False, "next_sentence_weight": 1.0}
    flags = {**not_in_earlier_versions, **before.get("flags", {})}
    changed = {name: (flags.get(name), now["flags"][name]) for name in TRAJECTORY}
    bins = _bins_of(before)
    if bins is not None and not now["flags"]["pack_sequences"]:
        both = min(len(bins), len(now["length_bins"]))  # phases
        changed["length_bins"] = bins[:both], now["length_bins"][:both]
    if "batch_multiple" in before and "batch_multiple" in now:
        name = "the number of which the rows of a batch are a multiple"
        changed[name] = before["batch_multiple"], now["batch_multiple"]
    for name, (was, is_now) in changed.items():
        if was != is_now:
            logging.warning(
                "%s is %r and was %r when this run began: it goes on, but not as it would have",
                name,
                is_now,
                was,
            )


def _by_file(records: dict[str, int]) -> dict[str, int]:
    """Return the counts of record files by paths that do not depend on how they are named."""
    return {absolute(path): count for path, count in records.items()}
