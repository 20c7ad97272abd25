"""Eight language adapters trained together, over one after another.

Model     bundled:multilingual-e5-small; LoRA r=16 on all linear sites, the fast path, bf16 where
          the processor multiplies in it.
Data      SIB-200 train rows of LANGUAGES, 4 rows of each a step; DATA is --data or $ADAPTX_DATA.
Command   python -m benchmarks.train_many

Together: ax.train_many, 4 rows of each of 8 languages a step. One after another: ax.train with 4
rows a step. One process, the encoder is loaded once, evaluation is left out; both train on the same
ROWS rows of each language. They take turns; medians. The last line is JSON: the ratio of the times
as `many_over_sequential`, and the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig

import adaptx as ax
from adaptx.cli.run import run as run_script
from adaptx.data.read import find_split, read_examples
from adaptx.errors import DataError

LANGUAGES = (
    *("swh_Latn", "yor_Latn", "hau_Latn", "amh_Ethi"),
    *("eng_Latn", "fra_Latn", "arb_Arab", "zho_Hans"),
)
ROWS, BATCH, RANK, ROUNDS = 40, 4, 16, 3


def many_over_sequential(data: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    encoder = ax.Encoder.from_pretrained("bundled:multilingual-e5-small")
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
    settings = {"epochs": 1, "batch_size": BATCH, "lr": 5e-4}
    rows = {
        lang: read_examples(find_split(data / "sib200" / lang, "train"))[:ROWS]
        for lang in LANGUAGES
    }
    members = [ax.Member(lang, config, train=rows[lang], settings=settings) for lang in LANGUAGES]

    def together() -> None:
        ax.train_many(encoder, members, slots=len(members), precision="auto")

    def one_after_another() -> None:
        for lang in LANGUAGES:
            task = ax.tasks.Classification()
            given = {"name": lang, "train": rows[lang], "precision": "auto", **settings}
            ax.train(encoder, task, config, **given)

    seconds: dict[str, list[float]] = {"together": [], "one after another": []}
    for number in range(rounds + 1):
        for name, call in (("together", together), ("one after another", one_after_another)):
            started = time.perf_counter()
            call()
            if number:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    found = {name: round(statistics.median(times), 2) for name, times in seconds.items()}
    ratio = round(found["together"] / found["one after another"], 3)
    return {"many_over_sequential": ratio, "seconds": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    found = many_over_sequential(options.data, options.rounds)
    print(found, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    run_script(main)
