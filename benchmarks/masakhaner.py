"""Named entities in ten African languages: one LoRA for each, against full fine-tuning.

Data      MasakhaNER 1.0 (Adelani et al. 2021, arXiv 2103.11811), PER ORG LOC DATE in BIO, in
          DATA/masakhaner1/<language>/{train,dev,test}.txt; DATA is --data or $ADAPTX_DATA. Its
          licence is CC BY-NC: measure with it.
Search    GRIDS below, two learning rates for each method, scored on the dev rows of SEARCHED with
          seed 0; the best is in CHOSEN. The epoch is the best on dev.
Score     span F1 on test, of whole entities (seqeval). Three seeds for swa and yor, one for the
          others; full fine-tuning has one.
Command   python -m benchmarks.masakhaner
          python -m benchmarks.masakhaner --langs swa,yor --methods lora,full --seeds 1
          python -m benchmarks.masakhaner --search lora,full
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptx.cli.run import run as run_script
from adaptx.data.read import read_tagged
from adaptx.data.records import Tagged
from adaptx.tasks import TokenClassification
from benchmarks.scored import LORA, Suite

COMMON = {"epochs": 10, "batch_size": 16, "precision": "auto"}


def splits(data: Path, lang: str) -> Mapping[str, Sequence[Path]]:
    """The files of a language."""
    folder = data / "masakhaner1" / lang
    return {split: [folder / f"{split}.txt"] for split in ("train", "dev", "test")}


def load(files: Sequence[Path], split: str) -> list[Tagged]:
    """The sentences of a file."""
    return read_tagged(files[0])


SUITE = Suite(
    name="masakhaner",
    langs=("amh", "hau", "ibo", "kin", "lug", "luo", "pcm", "swa", "wol", "yor"),
    once=("amh", "hau", "ibo", "kin", "lug", "luo", "pcm", "wol"),
    splits=splits,
    load=load,
    task=lambda: TokenClassification(repair=True),
    metric="f1",
    grids={
        "lora": [{**COMMON, "lora": LORA, "lr": lr} for lr in (1e-3, 2e-3)],
        "full": [{**COMMON, "dropout": 0.1, "lr": lr} for lr in (5e-5, 1e-4)],
    },
    chosen={"lora": 0, "full": 0},
    searched=("swa",),
)


if __name__ == "__main__":
    run_script(lambda: SUITE.main(__doc__ or ""))
