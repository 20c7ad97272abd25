"""Finding a sentence's English translation: the plain encoder, and a LoRA trained on 701 pairs.

Data      Train and dev: SIB-200's rows in a language and in English, joined by their index
          (Adelani et al. 2024, arXiv 2309.07445), 701 and 99 pairs, in DATA/sib200. Test: Tatoeba's
          pairs as in LASER (Artetxe and Schwenk 2019, arXiv 1812.10464), in DATA/tatoeba/<lang>;
          short everyday sentences, of another kind than SIB-200's. DATA is --data or $ADAPTX_DATA.
Search    the grids below, scored on the dev pairs of `searched` with seed 0. They can hardly tell
          settings apart: the plain encoder finds all of Swahili's and Amharic's. So the first
          setting stands, and the epoch is chosen by dev loss.
Score     accuracy (recall at 1): the share of sentences whose translation is strictly nearer, by
          cosine, than every other English sentence of the test set.
Command   python -m benchmarks.retrieval --methods lora,plain
          python -m benchmarks.retrieval --search lora
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptx.cli.run import run as run_script
from adaptx.data.read import read_column, read_pairs
from adaptx.data.records import Pair
from adaptx.errors import OptionError, choices
from adaptx.tasks import Retrieval
from benchmarks.scored import LORA, Suite

SIB200 = {"swh": "swh_Latn", "amh": "amh_Ethi", "xho": "xho_Latn"}
COMMON = {"epochs": 3, "batch_size": 32, "precision": "auto", "metric": "dev_loss"}


def splits(data: Path, lang: str) -> Mapping[str, Sequence[Path]]:
    """Of each split the file in the language, and the one in English."""
    if lang not in SIB200:
        raise OptionError(f"No language {lang!r}; there is {choices(SIB200)}.")
    found = {
        split: [data / "sib200" / name / f"{split}.tsv" for name in (SIB200[lang], "eng_Latn")]
        for split in ("train", "dev")
    }
    folder = data / "tatoeba" / lang
    return {**found, "test": [folder / f"test.{lang}", folder / "test.eng"]}


def load(files: Sequence[Path], split: str) -> list[Pair]:
    """The pairs of two aligned files, or of two tables by their rows' index."""
    if files[0].suffix != ".tsv":
        return read_pairs(*files)
    first, second = (
        dict(zip(read_column(file, "index_id"), read_column(file, "text"), strict=True))
        for file in files
    )
    return [Pair(text, second[key]) for key, text in first.items() if key in second]


SUITE = Suite(
    name="retrieval",
    langs=tuple(SIB200),
    splits=splits,
    load=load,
    task=lambda: Retrieval(temperature=0.02),
    metric="recall_at_1",
    grids={
        "lora": [{**COMMON, "lora": LORA, "lr": lr} for lr in (5e-4, 1e-3)],
        "plain": [{}],
    },
    chosen={"lora": 0, "plain": 0},
    searched=("swh", "xho"),
)


if __name__ == "__main__":
    run_script(lambda: SUITE.main(__doc__ or ""))
