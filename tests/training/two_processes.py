"""One rank of a two-process training on a small encoder; prints what it saw as JSON.

Joined by a file, on the loopback interface: accelerate's own launchers listen on all interfaces.
"""

import json
import os
import sys

import torch.distributed
from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax


def main(encoder_folder, data, meeting, run=None):
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=int(os.environ["RANK"]),
            world_size=world,
        )
    accelerator = Accelerator(cpu=True)
    encoder = ax.Encoder.from_pretrained(encoder_folder)
    adapter = ax.train(
        encoder,
        ax.tasks.Classification(),
        LoraConfig(r=4, target_modules="all-linear"),
        name="x",
        train=f"{data}/train.jsonl",
        dev=f"{data}/dev.jsonl",
        epochs=3,
        batch_size=9,  # 168 rows: the last batch has 6, and its micro-batches are uneven
        accumulate=4,  # 9 rows in 4 micro-batches on 2 processes: some have a single row
        lr=3e-3,
        accelerator=accelerator,
        run=run,
    )
    print(
        json.dumps(
            {
                "processes": accelerator.num_processes,
                "history": adapter.facts.training["history"],
                "weights": {
                    name: float(value.double().pow(2).sum())
                    for name, value in adapter.state_dict().items()
                },
            }
        )
    )
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
