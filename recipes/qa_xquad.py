"""A LoRA adapter that finds answers in passages, learnt in English and asked in five languages.

Data      XQuAD (Artetxe et al. 2020, arXiv 1910.11856; CC BY-SA 4.0), the same questions in each
          language, in <folder>/<language>/test.json.gz. Four tenths of the paragraphs are trained
          on in English, one tenth chooses the epoch, and the other half, the same paragraphs in
          every language, is tested. `--data FOLDER`.
Encoder   multilingual-e5-small, frozen, offline (`bundled:`).
Expected  test F1: English 0.567, Spanish 0.475, German 0.451, Hindi 0.398, Russian 0.445
          (benchmarks.qa with these settings, seed 0)
Time      9 minutes of training on one core of an AMD EPYC with bf16
Command   accelerate launch recipes/qa_xquad.py --data xquad

It trains the adapter, scores it in each language, exports a bundle that must keep dev's F1 within
half a point, and asks it. Everything lands in --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax
from adaptx import storage
from adaptx.cli.run import run
from adaptx.data.read import read_passages
from adaptx.data.splits import split_passages
from adaptx.runtime import Runtime

SHARES = {"train": 0.4, "dev": 0.1, "test": 0.5}
PASSAGE = "The bridge over the river was opened in 1932. It is 310 metres long."
QUESTIONS = ("When was the bridge opened?", "¿Cuántos metros mide el puente?")


def main() -> None:
    options = arguments()
    adapter_folder, bundle = options.output / "answers", options.output / "bundle"
    for folder in (adapter_folder, bundle):
        storage.check_output(folder, options.overwrite)
    parts = {
        lang: split_passages(read_passages(options.data / lang / "test.json.gz"), SHARES)
        for lang in ("en", *options.languages.split(","))
    }
    accelerator = Accelerator()
    encoder = ax.Encoder.from_pretrained(options.encoder)
    adapter = ax.train(
        encoder,
        ax.tasks.QuestionAnswering(),
        LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
        name="answers",
        train=parts["en"]["train"],
        dev=parts["en"]["dev"],
        epochs=options.epochs,
        lr=1e-3,
        batch_size=8,
        precision="auto",
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return
    adapter.save(adapter_folder, overwrite=options.overwrite)
    for lang, part in parts.items():
        scores = ax.evaluate(encoder, adapter, part["test"], batch_size=8).scores
        print(f"{lang}: test F1 {scores['f1']:.3f}, exact match {scores['exact_match']:.3f}")
    dev_rows = {"answers": parts["en"]["dev"]}
    kept = ax.export(encoder, [adapter], bundle, dev=dev_rows, overwrite=options.overwrite)
    before, after = (kept["dev"]["answers"][way] for way in ("torch", "bundle"))
    print(f"int8: dev F1 {before:.3f} -> {after:.3f}")
    with Runtime.open(bundle) as runtime:
        asked = [(question, PASSAGE) for question in QUESTIONS]
        for (question, _), answer in zip(asked, runtime.predict(asked, "answers"), strict=True):
            print(f"{question}\t{answer.prediction}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder")
    parser.add_argument("--languages", default="es,de,hi,ru", help="tested beside English")
    parser.add_argument("--encoder", default="bundled:multilingual-e5-small")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/qa_xquad"))
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
