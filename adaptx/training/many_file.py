"""The file of a job with many adapters, YAML or JSON. No torch here.

    slots: 8                      # how many train at a time
    precision: bf16               # "no", "bf16" or "auto"
    divide: adapters              # or rows: what several processes have a part of each
    defaults:                     # of every adapter below
      lora: {r: 16, target_modules: all-linear}
      epochs: 10
    adapters:
      - {name: sw-topics, language: sw, train: sw/train.tsv, dev: sw/dev.tsv}
      - {name: yo-topics, language: yo, train: yo/train.tsv, dev: yo/dev.tsv, lr: 5e-4}

An adapter has the keys of KEYS, and the settings of adaptx.training.settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from adaptx.errors import OptionError, choices
from adaptx.training.settings import Settings

DIVIDE = ("adapters", "rows")
TOP = ("encoder", "prefix", "slots", "precision", "divide", "defaults", "adapters")
KEYS = (
    *("name", "language", "train", "dev", "text_column", "other_column", "label_column"),
    *("task", "labels", "pooling", "scheme", "repair", "lora"),
)
TEXTS = (*("encoder", "prefix", "precision"), *KEYS[:8], "pooling", "scheme")


@dataclass(frozen=True)
class Job:
    """What the file says: `adapters` with the defaults filled in."""

    adapters: list[dict[str, Any]]
    encoder: str | None = None
    prefix: str | None = None
    slots: int = 8
    precision: str | None = None
    divide: str = "adapters"


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; OptionError for anything else."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OptionError(f"--config {path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise OptionError(f"{path} can't be read as YAML or JSON: {said}") from None
    if not isinstance(value, dict):
        raise OptionError(f"{path} holds a {type(value).__name__}, not named values.")
    return value


def many_of(path: Path, config: Mapping[str, Any]) -> Job:
    """The job of a file with `adapters`; OptionError, with the nearest key, for one that isn't."""
    check_keys(path, config, TOP)
    check_values(path, config)
    defaults, adapters = config.get("defaults") or {}, config["adapters"]
    if not isinstance(adapters, list) or not adapters:
        raise OptionError(f"{path}: adapters must be a list with at least one.")
    known = (*KEYS, *Settings.__dataclass_fields__)
    filled = []
    for place, one in enumerate((defaults, *adapters)):
        where = f"{path}, adapter {place}" if place else f"{path}, defaults"
        if not isinstance(one, dict):
            raise OptionError(f"{where}: this must be named values, not {one!r}.")
        check_keys(where, one, known)
        check_values(where, one)
        lora = {**(defaults.get("lora") or {}), **(one.get("lora") or {})}
        values = {key: number(value) for key, value in {**defaults, **one}.items()}
        filled.append({**values, "lora": {key: number(value) for key, value in lora.items()}})
    for place, one in enumerate(filled[1:], 1):
        if missing := [key for key in ("name", "train") if not isinstance(one.get(key), str)]:
            raise OptionError(f"{path}, adapter {place}: {missing[0]} is missing, or no text.")
    slots = config.get("slots", 8)
    if type(slots) is not int or slots < 1:  # true is an int too
        raise OptionError(f"{path}: slots={slots!r} must be a whole number, at least 1.")
    divide = config.get("divide", "adapters")
    if divide not in DIVIDE:
        raise OptionError(f"{path}: divide={divide!r} is none of {choices(DIVIDE)}.")
    top = {key: config.get(key) for key in ("encoder", "prefix", "precision")}
    return Job(filled[1:], slots=slots, divide=divide, **top)


def check_names(names: Sequence[str]) -> None:
    """Raise OptionError for a name used twice, or as good as: some disks fold case."""
    folded = [name.casefold() for name in names]
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise OptionError(f"The name {name!r} is used twice: give each adapter its own.")


def number(value: Any) -> Any:
    """A value, or the number it says: YAML takes 5e-4 for a text, for want of a point."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.I):
        return float(value)
    return value


def check_values(where: object, given: Mapping[str, Any]) -> None:
    """Raise OptionError for a value of another kind than its key's."""
    for key in TEXTS:
        if not isinstance(given.get(key), str | None):
            raise OptionError(
                f"{where}: {key} must be text, not {given[key]!r}; put it in quotes "
                f'("no" without them means false in YAML).'
            )
    for key, kind, name in (("lora", dict, "named values"), ("labels", list, "a list")):
        if not isinstance(given.get(key), kind | None):
            raise OptionError(f"{where}: {key} must be {name}, not {given[key]!r}.")


def check_keys(where: object, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise OptionError, with the nearest that there is, for a key that isn't known."""
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), list(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"there is {choices(known)}."
            raise OptionError(f"{where}: there is no key {key!r}; {hint}")
