"""Questions about passages in five languages, learnt from English alone: LoRA, a head, everything.

Data      XQuAD (Artetxe et al. 2020, arXiv 1910.11856; CC BY-SA 4.0), SQuAD's 240 paragraphs and
          1,190 questions in each language, the same in all, in DATA/xquad/<language>/test.json.gz;
          DATA is --data or $ADAPTX_DATA. A paragraph belongs to train, dev or test by a hash of
          its first question's id, which is the same in every language: none that is tested was
          trained on in any. That makes 499, 110 and 581 questions. XQuAD has five paragraphs of an
          article, so test has paragraphs of articles that train knows; and these scores don't
          compare with published ones, of models trained on SQuAD's 88,000 questions.
Search    the grids below, two learning rates for each method, scored on English dev rows with seed
          0; the best is in `chosen`. The epoch is the best on dev.
Score     F1 and exact match (adaptx.evaluation.questions) on the test questions of each language,
          after one training on English. `probe` is the head alone, on the frozen encoder's token
          states.
Command   python -m benchmarks.qa --methods lora,probe,full
          python -m benchmarks.qa --search lora,probe,full
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptx.cli.run import run as run_script
from adaptx.data.read import read_passages
from adaptx.data.records import Passage
from adaptx.data.splits import split_passages
from adaptx.tasks import QuestionAnswering
from benchmarks.scored import LORA, Suite

SHARES = {"train": 0.4, "dev": 0.1, "test": 0.5}
COMMON = {"epochs": 5, "batch_size": 8, "precision": "auto"}


def splits(data: Path, lang: str) -> Mapping[str, Sequence[Path]]:
    """English to train and choose on, and the language to test; each holds every paragraph."""
    english, own = (data / "xquad" / name / "test.json.gz" for name in ("en", lang))
    return {"train": [english], "dev": [english], "test": [own]}


def load(files: Sequence[Path], split: str) -> list[Passage]:
    """The questions of a split."""
    return split_passages(read_passages(files[0]), SHARES)[split]


SUITE = Suite(
    name="qa",
    langs=("en", "es", "de", "hi", "ru"),
    splits=splits,
    load=load,
    task=QuestionAnswering,
    metric="f1",
    grids={
        "lora": [{**COMMON, "lora": LORA, "lr": lr} for lr in (1e-3, 2e-3)],
        "probe": [{**COMMON, "lr": lr} for lr in (1e-2, 1e-3)],
        "full": [{**COMMON, "dropout": 0.1, "lr": lr} for lr in (1e-4, 2e-4)],
    },
    chosen={"lora": 0, "probe": 0, "full": 0},
    searched=("en",),
)


if __name__ == "__main__":
    run_script(lambda: SUITE.main(__doc__ or ""))
