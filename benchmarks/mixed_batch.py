"""One int8 graph for 32 adapters against a merged model, PEFT, and itself without adapters.

Encoder   bundled:multilingual-e5-small; LoRA r=8 on all linear sites; 32 different adapters.
Peers     optimum's export of one merged model, dynamic int8 (avx512_vnni, or avx2 without VNNI;
          per channel), as it is and with O1, O2, O3, at onnxruntime's defaults: the fastest at each
          shape counts. PEFT's mixed batch (adapter_names) in torch: bf16 and fp32, eager and SDPA,
          the allocator set.
Data      SIB-200 (DATA/sib200) for int8_drop_points, int8_cosine and edge; DATA is --data or
          $ADAPTX_DATA. Five adapters are trained on it first (minutes each; --cache keeps them).
Command   python -m benchmarks.mixed_batch
          python -m benchmarks.mixed_batch --parts times,drift

Models of a comparison take turns in one process, after a rest in which the threads of the one
before go to sleep; medians. Leave the machine alone meanwhile. The last line is JSON:

mixed_over_merged      32 adapters in a batch, over the fastest peer, by rows x tokens
uniform_over_merged    one adapter for the batch, over the same
mixed_over_own_plain   over our own graph without any bank, 32x48
peft_over_mixed        PEFT at its best over ours, 32x48
row_drift              largest change of a row's logits by neighbours or padding, over its largest
int8_cosine            pooled vectors to fp32 torch, the mean taken away, 8 languages
adapters_1000_over_10  time per row with so many in the bank
edge                   vocabulary cut to Swahili and English and not: MB, resident MB, ms for 1x16
rss_mb                 resident memory with 1 and 100 adapters, and the 100 adapters' fp32 weights
add_ms, first_answer_s an adapter added live; from the process's start to its first answer
int8_drop_points       accuracy in fp32 torch less the int8 bundle's, by language and pooled
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import adaptx as ax
from adaptx.cli.run import run as run_script
from adaptx.data.read import find_split, read_examples
from adaptx.encoder.encoder import Encoder
from adaptx.errors import DataError, OptionError, choices
from adaptx.onnx.gate import torch_pooled
from adaptx.onnx.vocabulary import cut
from adaptx.runtime.loading import load
from adaptx.runtime.runtime import Runtime
from adaptx.runtime.verify import compare_vectors
from benchmarks.bundles import (
    ENCODER,
    TRAINED,
    cached_bundle,
    random_adapter,
    trained_adapter,
    write_random_adapters,
)
from benchmarks.merged_peers import LEVELS, merged_peers
from benchmarks.served import interleaved, rows_of

SHAPES = ((32, 48), (8, 32), (1, 16))  # rows x tokens
ADAPTERS = 32
COSINES = ("swh", "yor", "hau", "amh", "eng", "fra", "arb", "zho")
PARTS = ("times", "peft", "drift", "cosine", "many", "edge", "memory", "add", "start", "drop")


def main() -> None:
    options = arguments()
    asked = options.parts.split(",")
    if unknown := sorted(set(asked) - set(PARTS)):
        raise OptionError(f"No part {choices(unknown)}; there is {choices(PARTS)}.")
    if options.data is None and {"cosine", "edge", "drop"} & set(asked):
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    encoder = Encoder.from_pretrained(ENCODER)
    found: dict[str, Any] = {}
    for part in asked:
        print(f"== {part}", file=sys.stderr)
        found |= globals()[f"part_{part}"](encoder, options)
        print(json.dumps(found, indent=1), file=sys.stderr)
    print(json.dumps(found))


def random_bundle(encoder: Encoder, options: argparse.Namespace, count: int = ADAPTERS) -> Path:
    def make() -> list[ax.Adapter]:
        return [random_adapter(encoder, number) for number in range(count)]

    return cached_bundle(options.cache, f"random{count}", encoder, make, bank=options.bank)


def part_times(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """Our three against the four merged models, at each shape."""
    import onnxruntime

    rt = Runtime.open(random_bundle(encoder, options))
    plain = Runtime.open(cached_bundle(options.cache, "plain", encoder, list))
    models = merged_peers(encoder, random_adapter(encoder, 0), options.cache)
    peers = {}
    for level in LEVELS:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        peers[level] = onnxruntime.InferenceSession(
            models[level], settings, providers=["CPUExecutionProvider"]
        )
    names = list(rt.facts.adapters)
    mixed, uniform, best, ms = {}, {}, {}, {}
    for rows, tokens in SHAPES:
        ids = rows_of(encoder.config.vocab_size, rows, tokens)
        padded = np.array(ids, np.int64)
        feeds = {"input_ids": padded, "attention_mask": np.ones_like(padded)}
        feeds["token_type_ids"] = np.zeros_like(padded)
        calls: dict[str, Callable[[], Any]] = {
            "mixed": lambda ids=ids, rows=rows: rt.pooled(ids, names[:rows]),
            "uniform": lambda ids=ids: rt.pooled(ids, names[0]),
            "own plain": lambda ids=ids: plain.pooled(ids),
        }
        for level, session in peers.items():
            taken = {i.name: feeds[i.name] for i in session.get_inputs()}
            calls[f"merged {level}"] = lambda s=session, f=taken: s.run(None, f)
        times = interleaved(calls, options.rounds, 3 if rows > 8 else 10)
        shape = f"{rows}x{tokens}"
        fastest = min(LEVELS, key=lambda level: times[f"merged {level}"])
        merged = times[f"merged {fastest}"]
        mixed[shape], uniform[shape] = times["mixed"] / merged, times["uniform"] / merged
        best[shape], ms[shape] = fastest, times
        if shape == "32x48":
            own = times["mixed"] / times["own plain"]
    return {
        "mixed_over_merged": rounded(mixed),
        "uniform_over_merged": rounded(uniform),
        "mixed_over_own_plain": round(own, 3),
        "merged_peer": best,
        "ms": {shape: rounded(times, 2) for shape, times in ms.items()},
    }


def part_peft(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """PEFT's mixed batch in a process whose allocator keeps what it has."""
    environment = dict(os.environ)
    environment |= {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
    peft = json.loads(_child("benchmarks.mixed_batch", "peft_mixed", environment))
    rt = Runtime.open(random_bundle(encoder, options))
    ids = rows_of(encoder.config.vocab_size, 32, 48)
    names = list(rt.facts.adapters)
    ours = interleaved({"mixed": lambda: rt.pooled(ids, names)}, 4, 3)["mixed"]
    fastest = min(peft, key=lambda kind: peft[kind])
    return {
        "peft_over_mixed": round(peft[fastest] / ours, 2),
        "peft": {"fastest": fastest, "ms": rounded(peft, 1), "ours_ms": round(ours, 1)},
    }


def child_peft_mixed() -> dict[str, float]:
    """Median ms of 32x48 with 32 adapters, by dtype and attention."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    folder = Encoder.from_pretrained(ENCODER).folder
    input_ids = torch.tensor(rows_of(250_000, 32, 48))
    names = [f"a{i}" for i in range(ADAPTERS)]
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for attention in ("eager", "sdpa"):
            model = AutoModel.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, add_pooling_layer=False
            )
            config = LoraConfig(r=8, lora_alpha=8, target_modules=_linears(model))
            wrapped = get_peft_model(model, config, adapter_name=names[0]).eval()
            for name in names[1:]:
                wrapped.add_adapter(name, config)
            wrapped = wrapped.to(dtype)
            mask = torch.ones_like(input_ids)
            with torch.inference_mode():
                times = []
                for _ in range(7):
                    started = time.perf_counter()
                    wrapped(input_ids=input_ids, attention_mask=mask, adapter_names=names)
                    times.append(time.perf_counter() - started)
            kind = f"{str(dtype).removeprefix('torch.')}, {attention}"
            found[kind] = 1000 * statistics.median(times[2:])
    return found


def _linears(model: Any) -> list[str]:
    import torch

    return [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]


def part_drift(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """Each row alone, and among others of other lengths, at several threads."""
    folder = random_bundle(encoder, options)
    rng = np.random.default_rng(0)
    with Runtime.open(folder) as rt, Runtime.open(folder, threads=1) as single:
        names = [*rt.facts.adapters, None]
        rows = [
            rows_of(encoder.config.vocab_size, 1, int(n), seed=i)[0]
            for i, n in enumerate(rng.integers(3, 90, 64))
        ]
        chosen = [names[i % len(names)] for i in range(len(rows))]
        worst = 0.0
        together = [rt.pooled(rows, chosen), single.pooled(rows, chosen)]
        for i, (row, name) in enumerate(zip(rows, chosen, strict=True)):
            for other in (rt, single):
                alone = other.pooled([row], [name])
                for batch in together:
                    pair = [batch[i : i + 1], alone]
                    if name is not None:
                        pair = [rt.logits(vector, name) for vector in pair]
                    change = np.abs(pair[0] - pair[1]).max() / np.abs(pair[1]).max()
                    worst = max(worst, float(change))
    return {"row_drift": worst}


def part_cosine(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """256 test sentences of SIB-200 in 8 languages, plain encoder."""
    texts = []
    for folder in sorted((options.data / "sib200").iterdir()):
        if folder.name.partition("_")[0] in COSINES:
            texts += [row.text for row in read_examples(find_split(folder, "test"))[:32]]
    ids = encoder.text.ids([encoder.prefix + text for text in texts])
    wanted = torch_pooled(encoder, None, ids)
    with Runtime.open(random_bundle(encoder, options)) as rt:
        cosine = compare_vectors(wanted, rt.pooled(ids))["cosine"]
    return {"int8_cosine": round(cosine, 5), "int8_cosine_texts": len(texts)}


def part_many(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """Time per row, each row another adapter of those in the bank."""
    with Runtime.open(random_bundle(encoder, options)) as rt:
        own = [rt.folder / "adapters" / name for name in rt.facts.adapters]
        kept = [load(folder, rt.facts) for folder in own]
        names = [*rt.facts.adapters[:10]]
        ids = rows_of(encoder.config.vocab_size, 100, 48)
        times: dict[int, list[float]] = {10: [], 1000: []}
        extra = list(rt.facts.adapters)
        for i in range(1000 - len(extra)):  # other names, and memory of their own
            source = kept[i % len(kept)]
            renamed = replace(source.facts, name=f"copy-{i}")
            rt.pool.add(own[i % len(own)], replace(source, facts=renamed), check=False)
            extra.append(renamed.name)
        rng = np.random.default_rng(0)
        for _ in range(options.rounds):
            for count, chosen in ((10, names), (1000, extra)):
                each = [str(name) for name in rng.choice(chosen, len(ids))]
                started = time.perf_counter()
                rt.pooled(ids, each)
                times[count].append(time.perf_counter() - started)
    ratio = statistics.median(times[1000][1:]) / statistics.median(times[10][1:])
    return {"adapters_1000_over_10": round(ratio, 3)}


def part_edge(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """One adapter; the vocabulary whole, and cut to what Swahili and English need."""
    corpus = {}
    for language, code in (("sw", "swh_Latn"), ("en", "eng_Latn")):
        rows = read_examples(find_split(options.data / "sib200" / code, "train"))
        corpus[language] = [row.text for row in rows]
    tokenizer = encoder.text.tokenizer.to_str()
    vocabulary = cut(tokenizer, corpus, prefixes=[encoder.prefix])

    def make() -> list[ax.Adapter]:
        return [trained_adapter(encoder, options.data, options.cache / "trained", "swh_Latn")]

    bundles = {
        "whole": cached_bundle(options.cache, "edge-whole", encoder, make),
        "cut": cached_bundle(options.cache, "edge-cut", encoder, make, vocabulary=vocabulary),
    }
    found: dict[str, Any] = {}
    for kind, folder in bundles.items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found[kind] = {
            "mb": round(size / 1e6, 1),
            **json.loads(_child("benchmarks.served", "edge", None, str(folder))),
        }
    found["cut"] |= {"rows": len(vocabulary.kept), "coverage": vocabulary.coverage}
    texts = [
        row.text
        for code in ("swh_Latn", "eng_Latn")
        for row in read_examples(find_split(options.data / "sib200" / code, "test"))
    ]
    with Runtime.open(bundles["whole"]) as whole, Runtime.open(bundles["cut"]) as small:
        prefixed = [encoder.prefix + text for text in texts]
        covered = [bool(np.isin(row, vocabulary.kept).all()) for row in encoder.text.ids(prefixed)]
        pairs = zip(
            whole.embed(texts, "swh_Latn"), small.embed(texts, "swh_Latn"), covered, strict=True
        )
        cosines = [
            float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b, inside in pairs if inside
        ]
        labels = [
            [
                answer.prediction.label
                for answer in rt.predict(texts, "swh_Latn")
                if answer.prediction
            ]
            for rt in (whole, small)
        ]
    same = [a == b for a, b, inside in zip(*labels, covered, strict=True) if inside]
    found["cut"] |= {
        "test_texts_covered": round(float(np.mean(covered)), 4),
        "same_label_on_covered": round(float(np.mean(same)), 4),
        "least_cosine_on_covered": round(min(cosines), 5),
    }
    return {"edge": found}


def part_memory(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """A process that serves 1 adapter, and one that serves 100."""
    folder = random_bundle(encoder, options, 1)
    paths = write_random_adapters(encoder, options.cache / "adapters", 101)
    found = {}
    for count in (1, 100):
        given = [str(path) for path in paths[1:count]]
        found[f"adapters_{count}"] = json.loads(
            _child("benchmarks.served", "memory", None, str(folder), *given)
        )
    weights = sum(
        part.a.nbytes + part.b.nbytes for part in random_adapter(encoder, 0).sites.values()
    )
    found["bytes_100"] = round(100 * weights / 1e6, 1)
    return {"rss_mb": found}


def part_add(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """`add` of an adapter's folder, saturation checked as it does by itself, and without."""
    paths = write_random_adapters(encoder, options.cache / "adapters", 101)[60:90]
    found = {}
    for check in (True, False):
        with Runtime.open(random_bundle(encoder, options)) as rt:
            times = []
            for path in paths:
                started = time.perf_counter()
                rt.add(path, check=check)
                times.append(time.perf_counter() - started)
            found[check] = round(1000 * statistics.median(times), 1)
    return {"add_ms": found[True], "add_unchecked_ms": found[False]}


def part_start(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """From the start of a process to its first answer; median of 7."""
    code = (
        "import sys; from adaptx.runtime.runtime import Runtime; rt = Runtime.open(sys.argv[1]); "
        "print(rt.predict(['Timu yetu imeshinda fainali'], 'random-0')[0].prediction.label)"
    )
    folder = random_bundle(encoder, options)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, stdout=subprocess.DEVNULL
        )
        times.append(time.perf_counter() - started)
    return {"first_answer_s": round(statistics.median(times), 3)}


def part_drop(encoder: Encoder, options: argparse.Namespace) -> dict[str, Any]:
    """Five trained adapters on their own test rows, 1,020 in all."""

    def make() -> list[ax.Adapter]:
        return [
            trained_adapter(encoder, options.data, options.cache / "trained", language)
            for language in TRAINED
        ]

    adapters = make()
    folder = cached_bundle(options.cache, "trained", encoder, lambda: adapters)
    drops, right, same = {}, np.zeros(2), 0
    with Runtime.open(folder) as rt:
        for adapter in adapters:
            rows = read_examples(find_split(options.data / "sib200" / adapter.name, "test"))
            texts = [row.text for row in rows]
            served = [a.prediction.label for a in rt.predict(texts, adapter.name) if a.prediction]
            in_torch = [answer.label for answer in encoder.predict(texts, adapter)]
            counts = [
                sum(label == row.label for label, row in zip(labels, rows, strict=True))
                for labels in (in_torch, served)
            ]
            drops[adapter.name] = round(100 * (counts[0] - counts[1]) / len(rows), 2)
            right += counts
            same += sum(a == b for a, b in zip(in_torch, served, strict=True))
    total = 204 * len(adapters)
    drops["pooled"] = round(float(100 * (right[0] - right[1]) / total), 2)
    return {
        "int8_drop_points": drops,
        "accuracy": {"torch": right[0] / total, "int8": right[1] / total, "same": same / total},
    }


def _child(module: str, name: str, environment: Mapping[str, str] | None, *given: str) -> str:
    """The last line of a module's `child_<name>` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--child", name, *given],
        env=dict(environment) if environment else None,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()[-1]


def rounded(values: Mapping[str, float], digits: int = 3) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=10, help="of each comparison")
    parser.add_argument("--bank", choices=("fp16", "fp32"), help="default: the exporter's")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument(
        "--cache", type=Path, default=Path(__file__).parent / ".cache" / "mixed_batch"
    )
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(globals()[f"child_{sys.argv[2]}"](*sys.argv[3:])))
    else:
        run_script(main)
