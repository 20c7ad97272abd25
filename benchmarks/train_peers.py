"""What benchmarks.train_speed compares, each in a process of its own: ours, and Trainer with PEFT.

A child trains, and after each block of steps answers on stdout and waits for a line on stdin.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from adaptx.data.read import find_split, read_examples
from adaptx.machine import has_bf16

ENCODER = "bundled:multilingual-e5-small"
RANK, BATCH, LR, EPOCHS = 16, 32, 1e-3, 9
STEPS, WARM_UP = 6, 3  # steps of a block, and before the first


def child(kind: str, data: Path, lang: str, seed: int) -> None:
    """Be one of the contenders."""
    folder = data / "sib200" / lang
    turns = Turns(input())
    train = train_adaptx if kind == "adaptx" else train_trainer
    try:
        score = train(kind, folder, seed, turns)
    except Stopped:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        answer({"peak_mb": peak})
    else:
        answer({"dev_accuracy": score})


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


def train_adaptx(kind: str, folder: Path, seed: int, turns: Turns) -> float:
    """ax.train as it comes, in bf16 where the processor multiplies in it; a tracker of Accelerate's
    sees the steps.
    """
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

    precision = "bf16" if has_bf16() else "no"
    accelerator = Accelerator(mixed_precision=precision, log_with=[Steps()])
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
    attention = "sdpa" if kind.endswith("SDPA") else "eager"
    options: dict[str, Any] = {} if plain else {"attn_implementation": attention}
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
            bf16=kind in ("autocast", "bf16"),
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
