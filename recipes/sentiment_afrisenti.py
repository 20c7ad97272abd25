"""A LoRA adapter that tells how a Swahili tweet feels, from gzipped tables to one int8 graph.

Data      AfriSenti (Muhammad et al. 2023, arXiv 2302.08956; CC BY 4.0), a folder with
          train.tsv.gz, dev.tsv.gz and test.tsv.gz, columns tweet and label: positive, neutral,
          negative. `--data FOLDER` takes any language's.
Encoder   multilingual-e5-small, frozen, offline (`bundled:`).
Expected  Swahili: test weighted F1 0.635 (benchmarks.afrisenti with these settings, seed 0)
Time      5 minutes of training on one CPU core
Command   accelerate launch recipes/sentiment_afrisenti.py --data afrisenti/swa

It trains the adapter to the epoch with the best weighted F1 on dev, as labels are uneven, scores it
on test by label, exports a bundle that must keep dev's accuracy within half a point, and answers
from it. Everything lands in --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax
from adaptx import storage
from adaptx.cli.run import run
from adaptx.data.read import find_split, read_examples
from adaptx.runtime import Runtime

TWEETS = ("Asante sana rafiki yangu, nimefurahi mno leo!", "Huduma yao ni mbaya, sitarudi tena.")


def main() -> None:
    options = arguments()
    adapter_folder, bundle = options.output / "sentiment", options.output / "bundle"
    for folder in (adapter_folder, bundle):
        storage.check_output(folder, options.overwrite)
    train, dev, test = (
        read_examples(find_split(options.data, split), text_column="tweet")
        for split in ("train", "dev", "test")
    )
    accelerator = Accelerator()
    encoder = ax.Encoder.from_pretrained(options.encoder)
    adapter = ax.train(
        encoder,
        ax.tasks.Classification(),
        LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
        name="sentiment",
        language=options.language,
        train=train,
        dev=dev,
        epochs=options.epochs,
        lr=5e-4,
        batch_size=16,
        precision="auto",
        metric="weighted_f1",
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return
    adapter.save(adapter_folder, overwrite=options.overwrite)
    report = ax.evaluate(encoder, adapter, test)
    scores = report.scores
    print(f"test weighted F1 {scores['weighted_f1']:.3f}, accuracy {scores['accuracy']:.3f}")
    for label, found in report.by_label.items():
        print(f"  {label:<8} F1 {found['f1']:.3f}, {found['rows']} tweets")
    dev_rows = {"sentiment": dev}
    kept = ax.export(encoder, [adapter], bundle, dev=dev_rows, overwrite=options.overwrite)
    before, after = (kept["dev"]["sentiment"][way] for way in ("torch", "bundle"))
    print(f"int8: dev accuracy {before:.3f} -> {after:.3f}")
    with Runtime.open(bundle) as runtime:
        for tweet, answer in zip(TWEETS, runtime.predict(TWEETS, "sentiment"), strict=True):
            print(f"{answer.prediction}\t{tweet}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder")
    parser.add_argument("--language", default="sw")
    parser.add_argument("--encoder", default="bundled:multilingual-e5-small")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/sentiment_afrisenti"))
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
