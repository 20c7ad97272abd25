"""Topics, names and sentiment of Swahili on one shared adapter, from files to one int8 graph.

Data      SIB-200's swh_Latn, MasakhaNER's swa and AfriSenti's swa: three folders under --data,
          sib200/swh_Latn, masakhaner1/swa and afrisenti/swa, each with train, dev and test.
Encoder   multilingual-e5-small, frozen, offline (`bundled:`).
Expected  test: topics 0.799, names 0.852, sentiment 0.622 weighted F1 (benchmarks.multitask with
          these settings, seed 0; with seed 1 0.789, 0.824 and 0.590); an adapter for each task has
          0.789, 0.859 and 0.640 (0.765, 0.861 and 0.646)
Time      31 minutes of training on one core of a machine with AVX2 that had other work too
Command   accelerate launch recipes/multitask.py --data DATA

It trains one LoRA with three heads to the epoch with the best mean on dev, scores each task on
test, exports a bundle that holds all three, and answers one batch with a row for each. Everything
lands in --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax
from adaptx import storage
from adaptx.cli.run import run
from adaptx.data.read import read_examples, read_tagged
from adaptx.runtime import Runtime
from adaptx.tasks.base import title

TASKS = {
    "topics": ax.tasks.Classification(),
    "names": ax.tasks.TokenClassification(repair=True),
    "sentiment": ax.tasks.Classification(),
}
WEIGHTS = {"topics": 1.0, "names": 4.0, "sentiment": 1.0}  # most words are no name: a small loss
SENTENCE = "Asante sana Rais Samia kwa kufungua hospitali mpya ya Dodoma!"


def main() -> None:
    options = arguments()
    bundle = options.output / "bundle"
    for folder in (bundle, *(options.output / f"sw-{task}" for task in TASKS)):
        storage.check_output(folder, options.overwrite)
    splits = ("train", "dev", "test")
    topics, names, sentiment = (
        options.data / name for name in ("sib200/swh_Latn", "masakhaner1/swa", "afrisenti/swa")
    )
    rows = {
        "topics": [read_examples(topics / f"{split}.tsv") for split in splits],
        "names": [read_tagged(names / f"{split}.txt") for split in splits],
        "sentiment": [
            read_examples(sentiment / f"{split}.tsv.gz", text_column="tweet") for split in splits
        ],
    }
    accelerator = Accelerator()
    encoder = ax.Encoder.from_pretrained(options.encoder)
    adapters = ax.train_together(
        encoder,
        {
            task: ax.Part(TASKS[task], [ax.Source(train, dev, language="sw")], WEIGHTS[task])
            for task, (train, dev, _) in rows.items()
        },
        LoraConfig(r=48, lora_alpha=48, target_modules="all-linear"),
        name="sw",
        sampling="temperature",
        temperature=2,
        epochs=options.epochs,
        lr=5e-4,
        batch_size=16,
        precision="auto",
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return
    for task, adapter in adapters.items():
        adapter.save(options.output / adapter.name, overwrite=options.overwrite)
        report = ax.evaluate(encoder, adapter, rows[task][2])
        said = ", ".join(f"{title(m)} {report.scores[m]:.3f}" for m in adapter.task.metrics)
        print(f"{task}: test {said}")
    dev = {adapters[task].name: rows[task][1] for task in adapters}
    kept = ax.export(encoder, list(adapters.values()), bundle, dev=dev, overwrite=options.overwrite)
    for name, found in kept["dev"].items():
        print(f"int8: {name}, dev {found['torch']:.3f} -> {found['bundle']:.3f}")
    with Runtime.open(bundle) as runtime:
        names_ = [adapter.name for adapter in adapters.values()]
        for name, answer in zip(names_, runtime.predict([SENTENCE] * 3, names_), strict=True):
            print(f"{name}: {answer.prediction}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder above the three")
    parser.add_argument("--encoder", default="bundled:multilingual-e5-small")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/multitask"))
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
