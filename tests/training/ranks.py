"""One process of a training on a small encoder; prints what it saw as JSON.

With MEETING, a file, the ranks meet there on the loopback interface; without, as their launcher
(`accelerate launch`) told them. OPTIONS are the training's own, as JSON; `signal_at` is a step in
which the last rank gets a SIGTERM.
"""

import json
import os
import signal
import sys

import torch.distributed
from accelerate import Accelerator
from peft import LoraConfig

import adaptx as ax
from adaptx.data.read import read_examples
from adaptx.data.records import Tagged
from adaptx.errors import AdaptxError
from adaptx.training.distributed import fsdp_hidden, held
from adaptx.training.plan import Plan


def held_share(parameters):
    """How much of the parameters this process holds: 1 when all of them are whole."""
    parameters = list(parameters)
    local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
    return sum(p.numel() for p in local) / sum(p.numel() for p in parameters)


def say(answer):
    """A line in one write: a launcher's processes share a pipe."""
    os.write(1, (json.dumps(answer) + "\n").encode())


def signal_in_step(number):
    """This process gets a SIGTERM when it begins the step with this number."""
    original, begun = Plan.steps, []

    def steps(self, epoch):
        for step in original(self, epoch):
            begun.append(step)
            if len(begun) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    Plan.steps = steps


def train_together(encoder, config, train, dev, **options):
    """Two tasks at once: topics, and tags that are each word's length."""
    words = [row.text.split()[:6] for row in train[:15]]
    tags = [Tagged(tuple(w), tuple("long" if len(x) > 5 else "short" for x in w)) for w in words]
    tagging = ax.tasks.TokenClassification(scheme="plain")
    parts = {
        "topics": ax.Part(ax.tasks.Classification(), [ax.Source(train, dev)]),
        "lengths": ax.Part(tagging, [ax.Source(tags, tags)], weight=0.5),
    }
    return ax.train_together(encoder, parts, config, name="x", **options)


def meet(meeting):
    """Join the other ranks, if there are any."""
    if meeting and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}",
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))  # fmt: skip


def is_last():
    """Whether this is the last rank."""
    return int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1


def main(encoder_folder, data, options, meeting=None):
    meet(meeting)
    options = {"epochs": 2, "batch_size": 9, "lr": 3e-3, "dev": f"{data}/dev.jsonl"} | options
    lora = LoraConfig(r=4, target_modules=options.pop("sites", "all-linear"))
    config = {"lora": lora, "probe": None, "full": ax.Full()}[options.pop("method", "lora")]
    if "run" in options:  # RANK in it is the process's own
        options["run"] = options["run"].replace("RANK", os.environ.get("RANK", "0"))
    rows, together = options.pop("rows", None), options.pop("together", False)
    if (step := options.pop("signal_at", None)) and is_last():
        signal_in_step(step)
    encoder = ax.Encoder.from_pretrained(encoder_folder)
    train = read_examples(f"{data}/train.jsonl")[:rows]
    try:
        if together:
            adapter = train_together(encoder, config, train[:40], **options)["topics"]
        else:
            adapter = ax.train(
                encoder, ax.tasks.Classification(), config, name="x", train=train, **options
            )
    except AdaptxError as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    facts = adapter.facts.training
    with fsdp_hidden():
        accelerator = Accelerator(cpu=True)
    with held(encoder, accelerator) as working:
        site = next(iter(working.sites.values()))
        parts = [held_share(working.model.parameters()), held_share([site.weight])]
    say(
        {
            "parts": parts,
            "processes": facts["processes"],
            "history": facts["history"],
            "weights": {n: w.double().pow(2).sum().item() for n, w in adapter.weights().items()},
            "whole": encoder.embed(["Nimefurahi sana"]).tolist(),
        }
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), *sys.argv[4:])
