"""Sentiment of tweets in four African languages: one LoRA for each, against full fine-tuning.

Data      AfriSenti (Muhammad et al. 2023, arXiv 2302.08956; CC BY 4.0): positive, neutral,
          negative, in DATA/afrisenti/<language>/{train,dev,test}.tsv.gz, columns tweet and label;
          DATA is --data or $ADAPTX_DATA. Hausa's train file is a sample of 3,000 rows.
Search    The grids below, two learning rates for each method, scored on the dev rows of `searched`
          with seed 0; the best is in `chosen`. The epoch is the best on dev.
Score     weighted F1 on test. Three seeds for swa, one for the others; full fine-tuning has one.
Command   python -m benchmarks.afrisenti
          python -m benchmarks.afrisenti --langs swa,por --methods lora,full --seeds 1
          python -m benchmarks.afrisenti --search lora,full
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptx.cli.run import run as run_script
from adaptx.data.read import read_examples
from adaptx.data.records import Example
from adaptx.tasks import Classification
from benchmarks.scored import LORA, Suite

COMMON = {"epochs": 6, "batch_size": 16, "precision": "auto", "metric": "weighted_f1"}


def splits(data: Path, lang: str) -> Mapping[str, Sequence[Path]]:
    """The files of a language."""
    folder = data / "afrisenti" / lang
    return {split: [folder / f"{split}.tsv.gz"] for split in ("train", "dev", "test")}


def load(files: Sequence[Path], split: str) -> list[Example]:
    """The tweets of a file."""
    return read_examples(files[0], text_column="tweet")


SUITE = Suite(
    name="afrisenti",
    langs=("swa", "kin", "por", "hau"),
    once=("kin", "por", "hau"),
    splits=splits,
    load=load,
    task=Classification,
    metric="weighted_f1",
    grids={
        "lora": [{**COMMON, "lora": LORA, "lr": lr} for lr in (5e-4, 1e-3)],
        "full": [{**COMMON, "dropout": 0.1, "lr": lr} for lr in (5e-5, 1e-4)],
    },
    chosen={"lora": 0, "full": 0},
    searched=("swa",),
)


if __name__ == "__main__":
    run_script(lambda: SUITE.main(__doc__ or ""))
