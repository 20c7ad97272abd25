"""A LoRA adapter that finds Swahili sentences' English translations, learnt from 701 pairs.

Data      Train and dev: SIB-200 (Adelani et al. 2024, arXiv 2309.07445), whose rows in different
          languages belong together by index_id: folders with train.tsv and dev.tsv, `--rows` in
          the language and `--english`. Test: Tatoeba's pairs (Artetxe and Schwenk 2019,
          arXiv 1812.10464), two files aligned line by line, `--test FILE,FILE`.
Encoder   multilingual-e5-small, frozen, offline (`bundled:`).
Expected  Swahili: accuracy 0.790 on Tatoeba, and 0.733 without the adapter
Time      70 seconds of training on 2 CPU cores with OMP_NUM_THREADS=2
Command   accelerate launch recipes/retrieval_tatoeba.py --rows sib200/swh_Latn \
            --english sib200/eng_Latn --test tatoeba/swh/test.swh,tatoeba/swh/test.eng

It trains the adapter, scores it and the plain encoder on the test pairs, and shows some searches.
The adapter lands in --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax
from adaptx import storage
from adaptx.cli.run import run
from adaptx.data.read import read_column, read_pairs
from adaptx.data.records import Pair

SHOWN = 3


def main() -> None:
    options = arguments()
    storage.check_output(options.output, options.overwrite)
    train, dev = (joined(options.rows, options.english, split) for split in ("train", "dev"))
    test = read_pairs(options.test)
    accelerator = Accelerator()
    encoder = ax.Encoder.from_pretrained(options.encoder)
    task = ax.tasks.Retrieval(temperature=0.02)
    adapter = ax.train(
        encoder,
        task,
        LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
        name="search",
        language=options.language,
        train=train,
        dev=dev,
        epochs=options.epochs,
        lr=5e-4,
        batch_size=32,
        precision="auto",
        metric="dev_loss",
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return
    adapter.save(options.output, overwrite=options.overwrite)
    plain = ax.Adapter.new(encoder, task, None, name="plain")
    for one in (plain, adapter):
        scores = ax.evaluate(encoder, one, test).scores
        print(f"{one.name}: accuracy {scores['recall_at_1']:.3f}, MRR {scores['mrr']:.3f}")
    queries = np.stack(encoder.predict([pair.text for pair in test[:SHOWN]], adapter))
    passages = np.stack(encoder.predict([pair.other for pair in test], adapter))
    for pair, best in zip(test, (queries @ passages.T).argmax(1), strict=False):
        print(f"{pair.text}\n  {test[best].other}")


def joined(rows: Path, english: Path, split: str) -> list[Pair]:
    """The rows of a split in both languages, by their index."""
    first, second = (
        dict(zip(read_column(file, "index_id"), read_column(file, "text"), strict=True))
        for file in (rows / f"{split}.tsv", english / f"{split}.tsv")
    )
    return [Pair(text, second[key]) for key, text in first.items() if key in second]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, required=True, help="the language's folder")
    parser.add_argument("--english", type=Path, required=True, help="its translation's")
    parser.add_argument("--test", required=True, metavar="FILE,FILE", help="aligned files")
    parser.add_argument("--language", default="sw")
    parser.add_argument("--encoder", default="bundled:multilingual-e5-small")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/retrieval_tatoeba/search"))
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
