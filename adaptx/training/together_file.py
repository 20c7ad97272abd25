"""The file of several tasks that share one adapter, YAML or JSON. No torch here.

    name: sw                      # its adapters are sw-topics and sw-names
    epochs: 10                    # settings of adaptx.training.settings
    batch_size: 32                # rows of all tasks together
    sampling: temperature         # of adaptx.training.mixture
    lora: {r: 16, target_modules: all-linear}
    tasks:
      topics: {task: classification, language: sw, train: sw/topics.tsv, dev: sw/dev.tsv}
      names:
        task: token-classification
        weight: 0.5
        sources:
          - {language: sw, train: sw/train.conll, dev: sw/dev.conll}
          - {language: yo, train: yo/train.conll, dev: yo/dev.conll}

A task has the keys of TASK; the rest are those of TOP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptx.errors import OptionError
from adaptx.training.many_file import check_keys, check_values, number
from adaptx.training.settings import Settings

SOURCE = ("train", "dev", "language", "text_column", "other_column", "label_column")
TASK = ("task", "labels", "pooling", "scheme", "repair", "weight", "sources", *SOURCE)
MIXTURE = ("sampling", "temperature", "passes")
TOP = (
    *("encoder", "prefix", "precision", "name", "lora", "tasks"),
    *MIXTURE,
    *Settings.__dataclass_fields__,
)


@dataclass(frozen=True)
class Together:
    """What the file says: each task's own values, its `sources` a list; the mixture, settings."""

    name: str | None
    tasks: dict[str, dict[str, Any]]
    lora: dict[str, Any]
    mixture: dict[str, Any]
    settings: dict[str, Any]
    encoder: str | None = None
    prefix: str | None = None
    precision: str | None = None


def together_of(path: Path, config: Mapping[str, Any]) -> Together:
    """The job of a file with `tasks`; OptionError, with the nearest key, for one that isn't."""
    check_keys(path, config, TOP)
    check_values(path, config)
    tasks = config["tasks"]
    if not isinstance(tasks, dict) or not tasks:
        raise OptionError(f"{path}: tasks must be named, each with its values.")
    found = {}
    for name, one in tasks.items():
        where = f"{path}, task {name}"
        _check(where, one, TASK)
        sources = one.get("sources", [{key: one[key] for key in SOURCE if key in one}])
        if "sources" in one and (both := [key for key in SOURCE if key in one]):
            raise OptionError(f"{where}: {both[0]} stands beside sources: write it into each.")
        if not isinstance(sources, list):
            raise OptionError(f"{where}: sources must be a list.")
        for place, source in enumerate(sources, 1):
            at = f"{where}, source {place}" if "sources" in one else where
            _check(at, source, SOURCE)
            if not isinstance(source.get("train"), str):
                raise OptionError(f"{at}: train is missing, or no text.")
        found[str(name)] = {
            **{key: number(one[key]) for key in one if key not in SOURCE},
            "sources": sources,
        }
    values = {key: number(value) for key, value in config.items()}
    lora = {key: number(value) for key, value in (config.get("lora") or {}).items()}
    mixture = {key: values[key] for key in MIXTURE if key in values}
    return Together(
        config.get("name"),
        found,
        lora,
        mixture,
        {key: values[key] for key in Settings.__dataclass_fields__ if key in values},
        **{key: config.get(key) for key in ("encoder", "prefix", "precision")},
    )


def _check(where: str, one: Any, known: tuple[str, ...]) -> None:
    if not isinstance(one, dict):
        raise OptionError(f"{where}: this must be named values, not {one!r}.")
    check_keys(where, one, known)
    check_values(where, one)
