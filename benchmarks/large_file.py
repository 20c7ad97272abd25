"""Training on a file larger than memory: time and memory until the first step is done.

Data      a JSONL file of --gigabytes, made here: sentences of random words, seven labels
Measured  in a process of its own: seconds from the call of `adaptx.train` to the first step's line
          in the run's log, and the process's largest memory until then, beyond what it held when
          the encoder was open (Linux: VmHWM, VmRSS)
Command   python -m benchmarks.large_file

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "maji",
    "shule",
    "daktari",
    "mechi",
    "safari",
    "soko",
    "mvua",
    "serikali",
    "mwalimu",
    "bahari",
    "kitabu",
    "umeme",
]
CHILD = """
import sys, time
from pathlib import Path
from peft import LoraConfig
import accelerate, transformers, adaptx as ax, adaptx.training.train
encoder = ax.Encoder.from_pretrained("bundled:multilingual-e5-small")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
status = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
print(time.time(), status["VmRSS"].split()[0], flush=True)
task = ax.tasks.Classification([f"topic {i}" for i in range(7)])
lora = LoraConfig(r=16, target_modules="all-linear")
ax.train(encoder, task, lora, name="large", train=sys.argv[1], epochs=1, run=sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jsonl"
        rows = write(path, int(options.gigabytes * 1e9))
        result = {"gigabytes": options.gigabytes, "rows": rows, **first_step(path)}
    print(json.dumps(result))


def write(path: Path, size: int) -> int:
    """A file of about `size` bytes; how many rows it has."""
    draw, rows = random.Random(0), 0
    with path.open("w") as file:
        while file.tell() < size:
            lines = [
                json.dumps(
                    {
                        "text": " ".join(draw.choices(WORDS, k=draw.randint(5, 40))),
                        "label": f"topic {draw.randrange(7)}",
                    }
                )
                for _ in range(10_000)
            ]
            file.write("\n".join(lines) + "\n")
            rows += len(lines)
    return rows


def first_step(path: Path) -> dict[str, float]:
    """Seconds and megabytes until the first step, in a new process."""
    run = path.with_name("run")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(run)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        began, held = (float(part) for part in child.stdout.readline().split())
        log = run / "log.jsonl"
        while not (log.is_file() and '"step"' in log.read_text()):
            if child.poll() is not None:
                raise RuntimeError("The training ended before its first step.")
            time.sleep(0.01)  # what is measured is in seconds
        seconds = time.time() - began
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        most = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    finally:
        child.kill()
        child.wait()
    return {"first_step_seconds": round(seconds, 2), "megabytes": round((most - held) / 1024)}


if __name__ == "__main__":
    main()
