"""Training speed beside transformers.Trainer with PEFT: tokens a second, memory, accuracy.

Model     bundled:multilingual-e5-small, mean pooling, a linear head; LoRA r=16 on all linear sites,
          batch 32, AdamW, the same learning rate and epochs for all.
Peers     trainer     transformers.Trainer + PEFT as they come: fp32, the encoder's dropout, SDPA,
                      rows in any order
          peft_best   the same at their best: no dropout, eager attention, rows of like length
                      together, bf16 by autocast, or with the frozen weights in bf16 too: the faster
          allocator   those two once more with glibc's allocator told to keep what it has
Data      SIB-200 (DATA/sib200); DATA is --data or $ADAPTX_DATA. Swahili for speed and memory,
          LANGUAGES for accuracy.
Command   python -m benchmarks.train_speed
          python -m benchmarks.train_speed --parts speed

Each contender trains in a process of its own and stops between blocks of STEPS steps, so that they
take turns on a machine that does nothing else; medians of the blocks. Tokens are counted without
padding, evaluation is left out. Accuracy's runs are kept under --cache. The last line is JSON:

adaptx_over_trainer, adaptx_over_peft_best, adaptx_over_peft_allocator  tokens/s over the peer's
share_of_limit     time that the step's unavoidable matrix products take by themselves, in the
                   faster dtype, over the step's time: the Linears' forward, the gradients of their
                   inputs, and LoRA's own; attention's products are left out
rss_over_trainer   largest resident memory over Trainer's
many_over_sequential  see benchmarks.train_many
dev_accuracy_minus_trainer  after EPOCHS epochs, languages and seeds pooled
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adaptx.cli.run import run as run_script
from adaptx.data.read import find_split, read_examples
from adaptx.errors import DataError, OptionError, choices

ENCODER = "bundled:multilingual-e5-small"
RANK, BATCH, LR, EPOCHS = 16, 32, 1e-3, 9
LANGUAGES, SEEDS = ("swh_Latn", "yor_Latn", "eng_Latn"), (0, 1, 2)
STEPS, WARM_UP = 6, 3  # steps of a block, and before the first
PARTS = ("speed", "many", "accuracy")
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
ALLOCATOR = ", allocator"
CONTENDERS: dict[str, tuple[str, dict[str, str]]] = {  # kind, environment
    "adaptx": ("adaptx", {}),
    "trainer": ("trainer", {}),
    "peft autocast": ("autocast", {}),
    "peft bf16": ("bf16", {}),
    f"peft autocast{ALLOCATOR}": ("autocast", KEEP),
    f"peft bf16{ALLOCATOR}": ("bf16", KEEP),
}


def main() -> None:
    options = arguments()
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    if options.child:
        child(options)
        return
    asked = options.parts.split(",")
    if unknown := sorted(set(asked) - set(PARTS)):
        raise OptionError(f"No part {choices(unknown)}; there is {choices(PARTS)}.")
    found: dict[str, Any] = {}
    for part in asked:
        found |= globals()[f"part_{part}"](options)
        print(json.dumps(found, indent=1), file=sys.stderr)
    print(json.dumps(found))


def part_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Blocks of steps in turns."""
    running = {name: start(name, options) for name in CONTENDERS}
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for _ in range(options.rounds):
        for name, process in running.items():
            blocks[name].append(ask(process, "go"))
    peaks = {name: ask(process, "stop")["peak_mb"] for name, process in running.items()}
    speed = {
        name: statistics.median(b["tokens"] / b["seconds"] for b in found)
        for name, found in blocks.items()
    }
    peft = [name for name in speed if name.startswith("peft")]
    best = max((name for name in peft if ALLOCATOR not in name), key=lambda name: speed[name])
    kept = max((name for name in peft if ALLOCATOR in name), key=lambda name: speed[name])
    rows = [b["tokens"] / STEPS for b in blocks["adaptx"]]
    limit = statistics.median(rows) / unavoidable(int(statistics.median(rows)))
    show(speed, peaks, limit)
    return {
        "adaptx_over_trainer": round(speed["adaptx"] / speed["trainer"], 3),
        "adaptx_over_peft_best": round(speed["adaptx"] / speed[best], 3),
        "adaptx_over_peft_allocator": round(speed["adaptx"] / speed[kept], 3),
        "peft_best": best,
        "share_of_limit": round(speed["adaptx"] / limit, 3),
        "rss_over_trainer": round(peaks["adaptx"] / peaks["trainer"], 3),
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "peak_mb": {name: round(value) for name, value in peaks.items()},
    }


def part_many(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.train_many import many_over_sequential

    found = many_over_sequential(options.data)
    return {"many_over_sequential": found["many_over_sequential"], "many_seconds": found["seconds"]}


def part_accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Dev accuracy of both after the same epochs, each run in a process of its own."""
    right: dict[str, list[float]] = {"adaptx": [], "trainer": []}
    for lang in LANGUAGES:
        for seed in SEEDS:
            for kind, found in right.items():
                found.append(accuracy(kind, lang, seed, options))
    scores = {kind: float(np.mean(found)) for kind, found in right.items()}
    return {
        "dev_accuracy": {kind: round(score, 4) for kind, score in scores.items()},
        "dev_accuracy_minus_trainer": round(scores["adaptx"] - scores["trainer"], 4),
    }


def accuracy(kind: str, lang: str, seed: int, options: argparse.Namespace) -> float:
    path = options.cache / f"{kind}-{lang}-{seed}-{RANK}-{BATCH}-{LR:g}-{EPOCHS}.json"
    if not path.is_file():
        print(f"{kind}, {lang}, seed {seed} …", file=sys.stderr)
        process = start(kind, options, "--lang", lang, "--seed", str(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(ask(process, "whole")))
        part.replace(path)
    return float(json.loads(path.read_text())["dev_accuracy"])


def start(name: str, options: argparse.Namespace, *more: str) -> subprocess.Popen[str]:
    kind, environment = CONTENDERS[name]
    command = [sys.executable, "-m", "benchmarks.train_speed", "--data", str(options.data)]
    return subprocess.Popen(
        [*command, "--child", kind, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def ask(process: subprocess.Popen[str], what: str) -> dict[str, float]:
    """Send a line, and read the answer: a line of JSON among what libraries say."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"answer"'):
            return dict(json.loads(line)["answer"])
    raise RuntimeError(f"{process.args} ended with {process.wait()}")


class Stopped(Exception):
    """The parent has what it wanted."""


class Turns:
    """What a child does after each step: at the end of a block, answer and wait."""

    def __init__(self, first: str):
        self.left, self.tokens, self.started = WARM_UP, 0, 0.0
        self.whole = first == "whole"
        self.warming = True

    def step(self, tokens: int) -> None:
        """A step of so many tokens is done."""
        self.tokens += tokens
        self.left -= 1
        if self.left or self.whole:
            return
        if self.warming:
            self.warming = False
        else:
            seconds = time.perf_counter() - self.started
            answer({"tokens": self.tokens, "seconds": seconds})
            if input() == "stop":
                raise Stopped
        self.left, self.tokens, self.started = STEPS, 0, time.perf_counter()


def answer(values: dict[str, float]) -> None:
    print(json.dumps({"answer": values}), flush=True)


def child(options: argparse.Namespace) -> None:
    folder = options.data / "sib200" / options.lang
    turns = Turns(input())
    train = train_adaptx if options.child == "adaptx" else train_trainer
    try:
        score = train(options.child, folder, options.seed, turns)
    except Stopped:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        answer({"peak_mb": peak})
    else:
        answer({"dev_accuracy": score})


def train_adaptx(kind: str, folder: Path, seed: int, turns: Turns) -> float:
    """ax.train as it comes, in bf16; a tracker of Accelerate's sees the steps."""
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker
    from peft import LoraConfig

    import adaptx as ax

    class Steps(GeneralTracker):
        name, requires_logging_directory, tracker = "steps", False, None

        def store_init_configuration(self, values: Any) -> None:
            pass

        def log(self, values: Any, step: Any = None, **_: Any) -> None:
            if "train/tokens" in values:
                turns.step(values["train/tokens"])

    accelerator = Accelerator(mixed_precision="bf16", log_with=[Steps()])
    accelerator.init_trackers("speed")
    encoder = ax.Encoder.from_pretrained(ENCODER)
    adapter = ax.train(
        encoder,
        ax.tasks.Classification(),
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"),
        name="speed",
        train=find_split(folder, "train"),
        epochs=EPOCHS if turns.whole else 1000,
        batch_size=BATCH,
        lr=LR,
        seed=seed,
        accelerator=accelerator,
    )
    report = ax.evaluate(encoder, adapter, read_examples(find_split(folder, "dev")))
    return report.scores["accuracy"]


def train_trainer(kind: str, folder: Path, seed: int, turns: Turns) -> float:
    """PEFT's LoRA on the AutoModel, a mean and a head, in transformers' Trainer."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModel, Trainer, TrainerCallback, TrainingArguments, set_seed

    import adaptx as ax
    from adaptx.encoder.encoder import mean_pool

    plain = kind == "trainer"
    set_seed(seed)
    encoder = ax.Encoder.from_pretrained(ENCODER)  # for its folder, its tokenizer and its prefix
    text, prefix, source = encoder.text, encoder.prefix, encoder.folder
    del encoder
    options: dict[str, Any] = {} if plain else {"attn_implementation": "eager"}
    if not plain:
        options |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "bf16":
        options["dtype"] = torch.bfloat16
    base = AutoModel.from_pretrained(source, add_pooling_layer=False, **options)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
    splits = {s: read_examples(find_split(folder, s)) for s in ("train", "dev")}
    task = ax.tasks.Classification().fit(splits["train"])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = get_peft_model(base, config)
            self.head = nn.Linear(base.config.hidden_size, task.outputs)

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            logits = self.head(mean_pool(states.float(), attention_mask))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = {
        split: [
            {"input_ids": ids, "labels": int(label), "length": len(ids)}
            for ids, label in zip(
                text.ids([prefix + example.text for example in examples]),
                task.targets(examples),
                strict=True,
            )
        ]
        for split, examples in splits.items()
    }
    tokens: list[int] = []  # of the batches that were made and not yet trained on

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        made = text.batch([row["input_ids"] for row in batch], range(len(batch)))
        tokens.append(int(made.attention_mask.sum()))
        return {
            "input_ids": torch.from_numpy(made.input_ids),
            "attention_mask": torch.from_numpy(made.attention_mask),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step(tokens.pop(0))

    grouped: dict[str, Any] = {}
    if not plain:
        new = int(transformers.__version__.split(".")[0]) >= 5
        grouped = (
            {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}
        )
    trainer = Trainer(
        model=Model(),
        args=TrainingArguments(
            output_dir="unused",
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS if turns.whole else 1000,
            learning_rate=LR,
            warmup_ratio=0.1,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=not plain,
            remove_unused_columns=False,
            seed=seed,
            **grouped,
        ),
        train_dataset=rows["train"],
        data_collator=collate,
        callbacks=[Steps()],
    )
    trainer.train()
    model = trainer.model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(rows["dev"]), BATCH):
            batch = collate(rows["dev"][start : start + BATCH])
            right += int((model(**batch)["logits"].argmax(1) == batch["labels"]).sum())
    return right / len(rows["dev"])


def unavoidable(tokens: int) -> float:
    """Seconds of a step's matrix products by themselves, in the faster of fp32 and bf16."""
    import torch

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        seconds = 0.0
        for inputs, outputs, times, lowest in (
            (384, 384, 48, 3),
            (384, 1536, 12, 0),
            (1536, 384, 12, 0),
        ):
            for product, count in products(tokens, inputs, outputs, dtype):
                seconds += median_time(product) * (times - lowest if count else times)
        found.append(seconds)
    return min(found)


def products(
    tokens: int, inputs: int, outputs: int, dtype: Any
) -> Iterator[tuple[Callable[[], Any], bool]]:
    """A site's products, and whether those that read the embeddings are spared them."""
    import torch

    x, dy = torch.randn(tokens, inputs).to(dtype), torch.randn(tokens, outputs).to(dtype)
    w, u = torch.randn(outputs, inputs).to(dtype), torch.randn(tokens, RANK).to(dtype)
    a, b = torch.randn(RANK, inputs).to(dtype), torch.randn(outputs, RANK).to(dtype)
    for forward in (lambda: x @ w.T, lambda: x @ a.T, lambda: u @ b.T):
        yield forward, False
    for backward in (lambda: dy @ b, lambda: u.T @ x, lambda: dy.T @ u):
        yield backward, False
    for below in (lambda: dy @ w, lambda: u @ a):
        yield below, True


SITES = ((384, 384, 48, 3), (384, 1536, 12, 0), (1536, 384, 12, 0))  # widths, all, in the lowest


def median_time(call: Callable[[], Any], times: int = 15) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:])


def show(speed: dict[str, float], peaks: dict[str, float], limit: float) -> None:
    table = Table(title="Training, tokens/s", width=80)
    for column in ("", "tokens/s", "largest MB"):
        table.add_column(column)
    for name, value in speed.items():
        table.add_row(name, f"{value:.0f}", f"{peaks[name]:.0f}")
    table.add_row("matrix products alone", f"{limit:.0f}", "")
    Console(stderr=True).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each contender")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument(
        "--cache", type=Path, default=Path(__file__).parent / ".cache" / "train_speed"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--lang", default="swh_Latn", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
