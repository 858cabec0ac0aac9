"""Sizes of one's own for the paper's tables: a JSON file of what differs from a named scale."""

import contextlib
import dataclasses
import os
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from bert_tf.files import read_json
from experiments.paper_tables.grid import GridError
from experiments.paper_tables.recipes import SCALES, TARGETS, Recipe, Scale, model_config


def read_scale(scale: str) -> Scale:
    """Return a scale by its name, or as a file says it.

    The file holds the fields of `Scale` that differ from those of the scale that it names as
    "scale" ("full" if it names none); those of a recipe or of the pre-training likewise:

        {"scale": "full", "seeds": [1, 2], "pretraining": {"steps": 50000, "warmup_steps": 500},
         "recipes": {"mnli": {"learning_rates": [3e-5], "epochs": 2}}}

    Args:
        scale: "full", "small" or the path of a JSON file.

    Raises:
        GridError: it is none of these, or the file holds what a scale has not; names it.
    """
    if scale in SCALES:
        return SCALES[scale]
    path = pathlib.Path(scale)
    names = ", ".join(SCALES)
    if not path.is_file():
        raise GridError(f"--scale: expected {names} or a JSON file, got {scale!r}")
    try:
        changes = read_json(path)
    except ValueError as error:
        raise GridError(f"{path}: not JSON: {error}") from error
    if not isinstance(changes, dict):
        raise GridError(f"{path}: expected an object, got {type(changes).__name__}")
    base_name = changes.pop("scale", "full")
    if not isinstance(base_name, str) or base_name not in SCALES:
        raise GridError(f"{path}: scale: expected one of {names}, got {base_name!r}")
    if "name" in changes:
        raise GridError(f"{path}: name: is that of the file; its words are given as words")
    words = f"the {base_name} scale, changed"
    base = dataclasses.replace(SCALES[base_name], name=path.name, words=words)
    if "own_recipes" in changes and base.own_recipes is None:
        base = dataclasses.replace(base, own_recipes=base.recipes)
    scale_of_file = _changed(base, changes, os.fspath(path))
    pretraining = scale_of_file.pretraining
    for where, seeds in (("", scale_of_file.seeds), ("pretraining: ", pretraining.seeds)):
        if len(set(seeds)) < len(seeds):
            raise GridError(f"{path}: {where}seeds: expected distinct ones, got {list(seeds)}")
    if not 0 < pretraining.masked_lm_prob <= 1:
        raise GridError(
            f"{path}: pretraining: masked_lm_prob: expected a share above 0 and at most 1, "
            f"got {pretraining.masked_lm_prob:g}"
        )
    try:
        model_config(pretraining.config, vocab_size=30_522)
    except (TypeError, ValueError) as error:
        raise GridError(f"{path}: pretraining: config: {error}") from error
    return scale_of_file


def _changed(base: Any, values: Any, where: str) -> Any:
    """Return a dataclass with the values that an object of the file has."""
    if not isinstance(values, dict):
        raise GridError(f"{where}: expected an object, got {values!r}")
    kinds = typing.get_type_hints(type(base))
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise GridError(f"{where}: unknown {unknown[0]!r}; known are {', '.join(kinds)}")
    changes = {
        name: _converted(value, kinds[name], getattr(base, name), f"{where}: {name}")
        for name, value in values.items()
    }
    if isinstance(base, Recipe) and ("epochs" in values) != ("steps" in values):
        changes = {"epochs": None, "steps": None, **changes}  # one is said instead of the other
    return dataclasses.replace(base, **changes)


def _converted(value: Any, kind: Any, current: Any, where: str) -> Any:
    """Return a value of the file as the field of a dataclass holds it.

    Args:
        value: what the file has.
        kind: the field's type.
        current: the value of the field in the scale that is changed.
        where: what an error names.
    """
    if dataclasses.is_dataclass(kind):
        return _changed(current, value, where)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _converted(value, parts[0], current, where)
    if origin is tuple and isinstance(value, list):
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if value and len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(_converted(one, k, None, f"{where}[{i}]") for i, (one, k) in pairs)
        expected = "at least one value" if parts[-1] is Ellipsis else f"{len(parts)} values"
        raise GridError(f"{where}: expected {expected}, got {value!r}")
    if origin is Mapping and isinstance(value, dict):
        if parts[1] is not Recipe:
            return {**current, **value}
        unknown = sorted(set(value) - {*TARGETS, ""})
        if unknown:
            raise GridError(f"{where}: unknown {unknown[0]!r}; known are {', '.join(TARGETS)}, ''")
        of_all = current[""]
        changed = {
            name: _changed(current.get(name, of_all), one, f"{where}: {name or repr(name)}")
            for name, one in value.items()
        }
        return {**current, **changed}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # then refused as what it is
            value = float(value)
    if type(value) is not kind or (kind in (int, float) and value < 0):
        words = {int: "an integer of at least 0", float: "a number of at least 0"}
        expected = words.get(kind) or {bool: "true or false", str: "a text"}.get(kind)
        expected = expected or ("an object" if origin is Mapping else "a list")
        raise GridError(f"{where}: expected {expected}, got {value!r}")
    return value
