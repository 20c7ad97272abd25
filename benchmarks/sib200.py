"""Topic classification on SIB-200: LoRA against the frozen encoder's probe and full fine-tuning.

Data      SIB-200 (Adelani et al. 2024, arXiv 2309.07445), 701/99/204 rows a language, 7 labels, in
          DATA/sib200/<language>/{train,dev,test}.tsv; DATA is --data or $ADAPTX_DATA. Any of its
          languages can be named.
Search    the grids below, four settings for LoRA and four for full fine-tuning, each scored by
          two-fold cross-validation over train and dev of `searched`, seed 0; the best mean is in
          `chosen`. The probe chooses its regularization among 13 values by cross-validation. No
          epoch is chosen: 99 dev rows can't tell epochs apart, the last one's averaged weights
          stand.
Fit       With the chosen settings every method is trained on the rows of train and dev together:
          the choice is made, and 99 rows more matter beside 701. --train-only leaves them out.
Score     accuracy on test. A probe's optimum is one, so it has one seed.
Command   python -m benchmarks.sib200 --langs swh_Latn --seeds 1 --methods lora,probe
          python -m benchmarks.sib200 --search lora,full
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptx.cli.run import run as run_script
from adaptx.data.read import read_examples
from adaptx.data.records import Example
from adaptx.tasks import Classification
from benchmarks.scored import LORA, Suite

COMMON = {"epochs": 7, "batch_size": 16, "precision": "auto"}
FIRST = {"probe_first": True}
TRIED = {
    "lora": (
        {"lr": 5e-4, "probe_first": False},
        {"lr": 5e-4, **FIRST},
        {"lr": 1e-3, **FIRST},
        {"lr": 1e-3, **FIRST, "smoothing": 0.1},
    ),
    "full": (
        {"lr": 5e-5, "probe_first": False},
        {"lr": 5e-5, **FIRST},
        {"lr": 1e-4, **FIRST},
        {"lr": 1e-4, **FIRST, "smoothing": 0.1},
    ),
}


def splits(data: Path, lang: str) -> Mapping[str, Sequence[Path]]:
    """The files of a language."""
    folder = data / "sib200" / lang
    return {split: [folder / f"{split}.tsv"] for split in ("train", "dev", "test")}


def load(files: Sequence[Path], split: str) -> list[Example]:
    """The sentences of a file."""
    return read_examples(files[0])


SUITE = Suite(
    name="sib200",
    langs=("swh_Latn", "hau_Latn", "yor_Latn", "amh_Ethi", "eng_Latn"),
    splits=splits,
    load=load,
    task=Classification,
    metric="accuracy",
    grids={
        "lora": [{**COMMON, "lora": LORA, **tried} for tried in TRIED["lora"]],
        "full": [{**COMMON, "dropout": 0.1, **tried} for tried in TRIED["full"]],
        "probe": [{}],
    },
    chosen={"lora": 2, "full": 2, "probe": 0},
    searched=("swh_Latn", "yor_Latn"),
    joined=True,
)


if __name__ == "__main__":
    run_script(lambda: SUITE.main(__doc__ or ""))
