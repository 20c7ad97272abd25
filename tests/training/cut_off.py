"""Trainings that write a checkpoint after each step. Each is a process of its own, which kills
itself in the n-th of the calls that write (fsync, rename, rmtree), or goes on to the end.

Takes [[run, n or null], …] as JSON; prints a line of JSON for each: the signal that ended it, the
steps that it committed, the newest checkpoint found afterwards, and the digest of its weights.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

from peft import LoraConfig

import adaptx as ax
from adaptx.training import resuming
from adaptx.training.checkpoint import newest_checkpoint


def main(encoder_folder, lives):
    encoder = ax.Encoder.from_pretrained(encoder_folder)
    for run, kill in json.loads(lives):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            train(encoder, run, kill, writing)
        os.close(writing)
        with os.fdopen(reading) as said:
            committed = said.read().split()
        _, status = os.waitpid(pid, 0)
        weights = None if os.WIFSIGNALED(status) else committed.pop()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half-written is among them
            newest = newest_checkpoint(Path(run))
        print(
            json.dumps(
                {
                    "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                    "code": None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
                    "committed": [int(step) for step in committed],
                    "newest": newest.step if newest else None,
                    "weights": weights,
                }
            ),
            flush=True,
        )


def train(encoder, run, kill, writing):
    calls = 0

    def dying(function):
        def call(*arguments, **options):
            nonlocal calls
            if calls == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return function(*arguments, **options)

        return call

    def write(folder, step, *arguments):
        os.fsync, Path.rename, shutil.rmtree = map(dying, plain)
        try:
            committed(folder, step, *arguments)
        finally:
            os.fsync, Path.rename, shutil.rmtree = plain
        os.write(writing, f"{step}\n".encode())

    plain, committed = (os.fsync, Path.rename, shutil.rmtree), resuming.write_checkpoint
    resuming.write_checkpoint = write
    data = Path("recipes/data/swh")
    try:
        adapter = ax.train(
            encoder,
            ax.tasks.Classification(),
            LoraConfig(r=2, target_modules=["query"]),
            name="x",
            train=data / "train.jsonl",
            dev=data / "dev.jsonl",
            epochs=3,
            lr=3e-3,
            run=run,
            resume=True,
            checkpoint_every=0.0,
        )
        digest = hashlib.sha256()
        for _, tensor in sorted(adapter.weights().items()):
            digest.update(tensor.numpy().tobytes())
        os.write(writing, digest.hexdigest().encode())
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
