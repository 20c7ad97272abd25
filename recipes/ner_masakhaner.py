"""A LoRA adapter that tags Swahili names, from CoNLL files to one int8 graph.

Data      MasakhaNER 1.0 (Adelani et al. 2021, arXiv 2103.11811; CC BY-NC 4.0: measure with it), a
          folder with train.txt, dev.txt and test.txt: PER, ORG, LOC, DATE in BIO. `--data FOLDER`
          takes any language's.
Encoder   multilingual-e5-small, frozen, offline (`bundled:`).
Expected  Swahili: test F1 0.86 (0.864 and 0.860 with the two seeds of benchmarks.masakhaner)
Time      14 minutes of training on one CPU core
Command   accelerate launch recipes/ner_masakhaner.py --data masakhaner1/swa

It trains the adapter, scores it on test by type, exports a bundle that must keep dev's F1 within
half a point, and tags a sentence from it. Everything lands in --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax
from adaptx import storage
from adaptx.cli.run import run
from adaptx.data.read import read_tagged
from adaptx.runtime import Runtime

SENTENCE = "Rais Samia Suluhu Hassan aliwasili Dodoma Jumatatu."


def main() -> None:
    options = arguments()
    adapter_folder, bundle = options.output / "ner", options.output / "bundle"
    for folder in (adapter_folder, bundle):
        storage.check_output(folder, options.overwrite)
    train, dev, test = (
        read_tagged(options.data / f"{split}.txt") for split in ("train", "dev", "test")
    )
    accelerator = Accelerator()
    encoder = ax.Encoder.from_pretrained(options.encoder)
    adapter = ax.train(
        encoder,
        ax.tasks.TokenClassification(repair=True),  # some files have an I- that continues nothing
        LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
        name="ner",
        language=options.language,
        train=train,
        dev=dev,
        epochs=options.epochs,
        lr=1e-3,
        batch_size=16,
        precision="auto",
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return
    adapter.save(adapter_folder, overwrite=options.overwrite)
    report = ax.evaluate(encoder, adapter, test)
    low, high = report.interval
    print(f"test F1 {report.scores['f1']:.3f} (95% interval {low:.3f} to {high:.3f})")
    for label, found in report.by_label.items():
        print(f"  {label:<5} F1 {found['f1']:.3f}, {found['rows']} entities")
    kept = ax.export(encoder, [adapter], bundle, dev={"ner": dev}, overwrite=options.overwrite)
    print(f"int8: dev F1 {kept['dev']['ner']['torch']:.3f} -> {kept['dev']['ner']['bundle']:.3f}")
    with Runtime.open(bundle) as runtime:
        (answer,) = runtime.predict([SENTENCE], "ner")
    print(f"{SENTENCE}\n  {answer.prediction}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder")
    parser.add_argument("--language", default="sw")
    parser.add_argument("--encoder", default="bundled:multilingual-e5-small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/ner_masakhaner"))
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
