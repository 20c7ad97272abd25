"""One int8 bundle with a trained adapter of every task, and how far it is from torch.

Data      DATA is --data or $ADAPTX_DATA, in the layouts of benchmarks.sib200, masakhaner, qa and
          retrieval: topics of SIB-200 in Swahili; names of MasakhaNER in Swahili; XQuAD in English,
          split by paragraph; translations of SIB-200, Swahili to English, tested on Tatoeba's.
          Four tasks have no data of their own there, so theirs is made from SIB-200's rows:
          multi-label   two sentences, one after the other, with the topics of both
          pairs         two sentences: the same topic, or another (half and half)
          similarity    three sentences in Swahili, three in English: the share of them that are
                        translations of each other, 0 to 1
          summary       six sentences; the two of the commonest topic are what to find
          They show that a task survives int8; their scores say nothing about real data.
Training  LoRA r=8 on all linear sites, at most 700 rows and a few epochs each: the bundle is
          measured, not the adapters. Kept under --cache.
Figures   by task: fp32, the largest difference of an output from torch's on the bundle's probe
          texts, as a share of the largest (the gate's bound is 1e-4); int8, the task's first metric
          on dev rows in torch and in the bundle, and the drop in points with its 95% interval.
          `within`: the lower end of the interval is at most half a point. The bounds of fp32 and
          int8 on the probe texts hold, or the export is refused. The last line is JSON.
Time      one to four minutes for an adapter on one core; then two for the bundle
Command   python -m benchmarks.bundle_tasks
          python -m benchmarks.bundle_tasks --tasks names,answers
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import adaptx as ax
from adaptx.cli.run import run as run_script
from adaptx.data.records import Document, Example, Labelled, Pair
from adaptx.errors import DataError, OptionError, choices
from adaptx.onnx.bundle import MAX_DROP
from adaptx.tasks import Task
from benchmarks import masakhaner, qa, retrieval, sib200
from benchmarks.bundles import ENCODER, cached_adapter, config

ROWS, DEV = 700, 400  # at most
Splits = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Part:
    """A task of the bundle: its data, and how its adapter is trained."""

    task: Task
    read: Callable[[Path], Splits]
    epochs: int
    lr: float = 1e-3
    batch_size: int = 16


def topics(data: Path) -> Splits:
    """SIB-200's sentences."""
    files = sib200.splits(data, "swh_Latn")
    return {split: sib200.load(files[split], split) for split in ("train", "dev")}


def several(data: Path) -> Splits:
    """Two sentences, with the topics of both."""
    return {split: joined(mixed(rows)) for split, rows in topics(data).items()}


def joined(rows: Sequence[Example]) -> list[Labelled]:
    """Each row and the next as one."""
    return [
        Labelled(f"{one.text} {two.text}", tuple(sorted({*one.labels, *two.labels})))
        for one, two in pairwise(rows)
    ]


def same_topic(data: Path) -> Splits:
    """Two sentences, half of the pairs of one topic."""
    return {split: related(mixed(rows)) for split, rows in topics(data).items()}


def related(rows: Sequence[Example]) -> list[Pair]:
    """Each row, and the next one that has its topic; of every other, that hasn't."""
    found = []
    for i, one in enumerate(rows):
        others = [*rows[i + 1 :], *rows[:i]]
        same = i % 2 == 0
        fits = (other for other in others if (other.label == one.label) is same)
        if other := next(fits, None):
            found.append(Pair(one.text, other.text, "same" if same else "another"))
    return found


def translated(data: Path) -> Splits:
    """Three sentences in each of two languages, and the share that are translations."""
    files = retrieval.splits(data, "swh")
    return {split: shares(mixed(retrieval.load(files[split], split))) for split in ("train", "dev")}


def shares(pairs: Sequence[Pair], size: int = 3) -> list[Pair]:
    """Some first texts; as many other texts; the share of these that belong to them."""
    found = []
    for i in range(len(pairs)):
        own, others = ([pairs[(i + k) % len(pairs)] for k in range(n, n + size)] for n in (0, size))
        alike = i % (size + 1)
        english = [*own[:alike], *others[alike:]]
        found.append(
            Pair(
                " ".join(pair.text for pair in own),
                " ".join(pair.other for pair in reversed(english)),
                str(alike / size),
            )
        )
    return found


def one_topic(data: Path) -> Splits:
    """Six sentences, two of them of the commonest topic: those are the summary."""
    rows = topics(data)
    ((topic, _),) = Counter(row.label for row in rows["train"]).most_common(1)
    return {split: documents(mixed(rows[split]), topic) for split in rows}


def documents(rows: Sequence[Example], topic: str) -> list[Document]:
    """Every two rows of the topic among four others."""
    ours, others = (
        [row for row in rows if (row.label == topic) is is_it] for is_it in (True, False)
    )
    found = []
    for i in range(len(ours) - 1):
        some = [*ours[i : i + 2], *(others[(4 * i + k) % len(others)] for k in range(4))]
        random.Random(i).shuffle(some)
        sentences, chosen = zip(*((row.text, row.label == topic) for row in some), strict=True)
        found.append(Document(sentences, chosen))
    return found


def translations(data: Path) -> Splits:
    """SIB-200's pairs to learn from, Tatoeba's to find."""
    files = retrieval.splits(data, "swh")
    return {
        split: retrieval.load(files[source], source)
        for split, source in (("train", "train"), ("dev", "test"))
    }


def names(data: Path) -> Splits:
    """MasakhaNER's Swahili."""
    files = masakhaner.splits(data, "swa")
    return {split: mixed(masakhaner.load(files[split], split)) for split in ("train", "dev")}


def answers(data: Path) -> Splits:
    """XQuAD's English."""
    files = qa.splits(data, "en")
    return {split: qa.load(files[split], split) for split in ("train", "dev")}


def mixed(rows: Sequence[Any]) -> list[Any]:
    """In another order, the same each time."""
    found = list(rows)
    random.Random(0).shuffle(found)
    return found


PARTS = {
    "topics": Part(ax.tasks.Classification(), topics, epochs=4),
    "several": Part(ax.tasks.MultiLabel(), several, epochs=15),
    "same-topic": Part(ax.tasks.PairClassification(), same_topic, epochs=5),
    "summary": Part(ax.tasks.Summarization(length=2), one_topic, epochs=5),
    "translated": Part(ax.tasks.Similarity(), translated, epochs=3),
    "translations": Part(
        ax.tasks.Retrieval(temperature=0.02), translations, epochs=2, lr=5e-4, batch_size=32
    ),
    "names": Part(masakhaner.SUITE.task(), names, epochs=4),
    "answers": Part(ax.tasks.QuestionAnswering(), answers, epochs=3, batch_size=8),
}


def main() -> None:
    options = arguments()
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    asked = options.tasks.split(",")
    if unknown := sorted(set(asked) - PARTS.keys()):
        raise OptionError(f"No task {choices(unknown)}; there is {choices(PARTS)}.")
    read = {name: PARTS[name].read(options.data) for name in asked}
    encoder = ax.Encoder.from_pretrained(ENCODER)
    adapters = [trained(encoder, name, read[name]["train"], options.cache) for name in asked]
    dev = {name: read[name]["dev"][:DEV] for name in asked}
    with tempfile.TemporaryDirectory() as folder:
        # 100 points: what falls is reported here, not refused.
        report = ax.export(
            encoder, adapters, Path(folder) / "bundle", dev=dev, max_drop=100, say=said
        )
    found = {name: figures(PARTS[name].task, name, report) for name in asked}
    show(found)
    print(json.dumps(found))


def trained(encoder: ax.Encoder, name: str, rows: Sequence[Any], cache: Path) -> ax.Adapter:
    """The task's adapter, from the cache where it stands there."""
    part, rows = PARTS[name], rows[:ROWS]
    settings: dict[str, Any] = {
        "epochs": part.epochs,
        "lr": part.lr,
        "batch_size": part.batch_size,
        "precision": "auto",
    }
    without_places = [replace(row, path="", line=0) for row in rows]
    about = repr([encoder.fingerprint, part.task, settings, without_places]).encode()
    train = partial(ax.train, encoder, part.task, config(), name=name, train=rows, **settings)
    return cached_adapter(cache, name, about, encoder, train)


def figures(task: Task, name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What the gate's report says of one adapter."""
    dev = report["dev"][name]
    return {
        "task": task.kind,
        "fp32": report["fp32"][name]["max_relative_difference"],
        "int8": {key: value for key, value in report["int8"][name].items() if key != "failed"},
        **{key: dev[key] for key in ("rows", "metric", "torch", "bundle", "drop", "low", "high")},
        "within": dev["low"] <= MAX_DROP / 100,
    }


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The table, on stderr."""
    table = Table("task", "fp32", "metric", "rows", "torch", "int8", "drop, points", "within")
    for one in found.values():
        drop, low, high = (100 * one[key] for key in ("drop", "low", "high"))
        table.add_row(
            one["task"],
            f"{one['fp32']:.1e}",
            one["metric"],
            str(one["rows"]),
            f"{one['torch']:.3f}",
            f"{one['bundle']:.3f}",
            f"{drop:+.1f} ({low:+.1f} to {high:+.1f})",
            "yes" if one["within"] else "no",
        )
    Console(stderr=True).print(table)


def said(step: str) -> None:
    print(f"{step} …", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bundle_tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--data", type=Path, default=Path(root) if root else None)
    parser.add_argument("--tasks", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/.cache/bundle_tasks"))
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
