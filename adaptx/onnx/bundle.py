"""Writing a bundle: one graph for every adapter, proved before it exists (adaptx.onnx.gate)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adaptx import storage
from adaptx.adapters.adapter import Adapter
from adaptx.data.large import open_records
from adaptx.encoder.encoder import Encoder
from adaptx.encoder.families import is_bert_shaped
from adaptx.errors import OptionError, SiteError, choices
from adaptx.onnx import gate
from adaptx.onnx import quantize as int8
from adaptx.onnx.build import build
from adaptx.onnx.calibration import CALIBRATION_TEXTS, calibration_rows
from adaptx.onnx.graph import save
from adaptx.onnx.lone import lone_model, save_beside
from adaptx.onnx.vocabulary import Cut, cut_table, new_id
from adaptx.runtime.bank import Chunk
from adaptx.runtime.layout import (
    ADAPTERS,
    CHECK,
    IDS,
    INPUT_IDS,
    LONE,
    MASK,
    MODEL,
    QUANTIZATIONS,
    TOKENIZER,
    WEIGHTS,
    BankSpec,
    BundleFacts,
    write_bundle,
)
from adaptx.runtime.rows import bank_rows
from adaptx.runtime.runtime import Runtime
from adaptx.runtime.verify import PLAIN, write_probe

BANKS = {"fp32": "float32", "fp16": "float16"}
CALIBRATED = 64  # adapters that calibration sees, at most
MAX_DROP = 0.5  # points of accuracy


def export(
    encoder: Encoder,
    adapters: Sequence[Adapter],
    output: str | Path,
    *,
    quantize: str = "int8",
    bank: str | None = None,
    sites: Sequence[str] | None = None,
    dev: Mapping[str, str | Path | Sequence[Any]] | None = None,
    max_drop: float = MAX_DROP,
    vocabulary: Cut | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the bundle of `adapters` to the folder `output`; returns its parity report.

    quantize    "int8" (weights, activations and vocabulary) or "fp32"
    bank        "fp32" or, beside int8, "fp16", of the adapters in memory: half of it
    sites       where adapters may attach: names, or "all"; None: where any of these does. Adapters
                added later may attach nowhere else
    dev         labelled rows, or a file of them, by an adapter's name: its accuracy may not fall
                by more than `max_drop` points, surely (the lower end of the paired 95% interval)
    vocabulary  a part of the vocabulary (adaptx.onnx.vocabulary)
    say         called with each step, as it takes minutes where there are many adapters

    Raises ParityError, naming the adapter, and writes nothing, when the bundle doesn't answer like
    torch; OptionError for what can't be exported, before any work.
    """
    quantized, say = _checked(quantize, QUANTIZATIONS) == "int8", say or (lambda _: None)
    dtype = BANKS[_checked(bank or "fp32", BANKS)]
    if dtype == "float16" and not quantized:
        raise OptionError("bank='fp16' goes with quantize='int8': fp32 is there to be exact.")
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)):
        raise OptionError(f"max_drop={max_drop!r} must be a number of points.")
    _check_opened(adapters)
    chosen = chosen_sites(encoder, adapters, sites)
    dev = checked_dev(adapters, dev or {})
    ids = gate.probe_ids(encoder, vocabulary)
    storage.check_output(output, overwrite, "bundle")
    text = encoder.text
    with storage.new_folder(output, overwrite=overwrite, kind="bundle") as made:
        (made / ADAPTERS).mkdir()
        for adapter in adapters:
            adapter.save(made / ADAPTERS / adapter.name)
        tokenizer = vocabulary.tokenizer_json if vocabulary else text.tokenizer.to_str()
        (made / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        say("building the graph")
        model, banks = build(encoder, chosen)
        whole = model
        if vocabulary:
            model = cut_table(model, vocabulary.kept)
        save(model, made / MODEL)
        row = lone_model(encoder, chosen) if is_bert_shaped(encoder.config) else None
        if row is not None:
            row = cut_table(row, vocabulary.kept) if vocabulary else row
            save_beside(row, made / LONE, made / MODEL)
        facts = BundleFacts(
            encoder=encoder.name,
            fingerprint=encoder.fingerprint,
            prefix=encoder.prefix,
            hidden_size=encoder.hidden_size,
            pad_id=new_id(vocabulary.kept, text.pad_id) if vocabulary else text.pad_id,
            max_length=text.max_length,
            banks=tuple(banks),
            bank_dtype="float32",
            quantization="fp32",
            adapters=tuple(adapter.name for adapter in adapters),
            vocabulary=_about(vocabulary) if vocabulary else {},
        )
        say("asking torch")
        probed = gate.probe(encoder, adapters, ids)
        if vocabulary:
            kept = [[new_id(vocabulary.kept, token) for token in row] for row in ids]
            probed = replace(probed, ids=kept)
        write_probe(made, probed)
        write_bundle(made, facts)
        report: dict[str, Any] = {"texts": len(ids)}
        say("comparing torch merged and the fp32 graph")
        report["merged"] = {
            adapter.name: gate.merged_difference(encoder, adapter, ids)
            for adapter in adapters
            if adapter.sites
        }
        gate.check_merged(report["merged"])
        with Runtime.open(made) as runtime:
            report["fp32"] = gate.check(runtime, "fp32")
        if quantized:
            say("calibrating int8")
            # On the whole vocabulary: a cut one answers the same texts with the same bits.
            feeds = list(_feeds(encoder, adapters, banks))
            ranges = int8.calibrate(whole, feeds, sum(f[INPUT_IDS].size for f in feeds))
            small, _ = int8.quantize(model, ranges)
            if dtype == "float16":
                small = int8.with_half_banks(small, banks)
            (made / WEIGHTS).unlink(missing_ok=True)
            save(small, made / MODEL)
            if row is not None:  # what its products read has the same names, so the same ranges
                row = int8.with_joined_products(int8.quantize(row, ranges)[0])
                if dtype == "float16":
                    row = int8.with_half_slots(row, banks)
                save_beside(row, made / LONE, made / MODEL)
            beside = onnx.load(made / MODEL, load_external_data=False)
            onnx.save(int8.with_saturation(beside), made / CHECK)
            facts = replace(facts, quantization="int8", bank_dtype=dtype)
            write_bundle(made, facts)
            say("comparing the int8 graph")
            with Runtime.open(made) as runtime:
                found = [runtime.check(adapter.name, warn=False) for adapter in adapters]
                facts = replace(facts, saturation=max((s or 0.0 for s in found), default=0.0))
                report["int8"] = gate.check(runtime, "int8")
        if dev:
            say("scoring dev rows")
            with Runtime.open(made) as runtime:
                report["dev"] = {
                    adapter.name: gate.check_drop(
                        encoder, runtime, adapter, dev[adapter.name], max_drop / 100
                    )
                    for adapter in adapters
                    if adapter.name in dev
                }
            failed = {n: [r["failed"]] for n, r in report["dev"].items() if "failed" in r}
            gate.raise_failures(failed, facts.quantization, report)
        write_bundle(made, replace(facts, parity=report))
    return report


def _checked(value: str, allowed: Any) -> str:
    if value not in list(allowed):
        raise OptionError(f"{value!r} is none of {choices(allowed)}.")
    return value


def _check_opened(adapters: Any) -> None:
    """Raise OptionError for what is no list of adapters."""
    if not isinstance(adapters, (list, tuple)):
        raise OptionError(f"adapters must be a list of them, not a {type(adapters).__name__}.")
    for one in adapters:
        if not isinstance(one, Adapter):
            raise OptionError(
                f"{one!r} is a {type(one).__name__}, not an adapter: open its folder first, with "
                f"ax.Adapter.load(folder, encoder)."
            )


def chosen_sites(
    encoder: Encoder, adapters: Sequence[Adapter], sites: Sequence[str] | None
) -> list[str]:
    """The sites of the graph, in the encoder's order, after the adapters have been checked."""
    names = [adapter.name for adapter in adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(
            f"Two of the adapters are called {choices(twice)}: rename one with `adaptx adapters "
            f"rename`."
        )
    if PLAIN in names:
        raise OptionError(f"An adapter can't be called {PLAIN!r} in a bundle: rename it.")
    for adapter in adapters:
        adapter.check_encoder(encoder)
        adapter.check_answers()
        if adapter.facts.way not in ("bank", "head"):
            raise OptionError(
                f"Adapter {adapter.name!r} is of the method {adapter.facts.method!r}, which a bank "
                f"can't hold: export it merged, with `adaptx export … --merged`."
            )
    used = {site for adapter in adapters for site in adapter.sites}
    if sites is None:
        return [name for name in encoder.sites if name in used]
    if isinstance(sites, str):
        sites = list(encoder.sites) if sites == "all" else [sites]
    if unknown := sorted(set(sites) - encoder.sites.keys()):
        raise SiteError(
            f"The encoder has no site {choices(unknown)}; there is {choices(encoder.sites)}, or "
            f"'all'."
        )
    if left := sorted(used - set(sites)):
        raise SiteError(f"sites leaves out {choices(left)}, where the adapters attach.")
    return [name for name in encoder.sites if name in set(sites)]


def checked_dev(
    adapters: Sequence[Adapter], dev: Mapping[str, str | Path | Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The rows of `dev`, after every adapter that it names has been checked to have those labels.

    A file's are read, as the adapter's task reads them.
    """
    if not isinstance(dev, Mapping):
        raise OptionError("dev must say whose rows they are, as in dev={name: rows}.")
    by_name = {adapter.name: adapter for adapter in adapters}
    found = {}
    for name, given in dev.items():
        if name not in by_name:
            raise OptionError(f"dev names no adapter {name!r}; there is {choices(by_name)}.")
        task = by_name[name].task
        if task is None:
            raise OptionError(f"Adapter {name!r} has no task: there is nothing to score on dev.")
        rows = open_records(given, task.kind) if isinstance(given, (str, Path)) else given
        if not rows:
            raise OptionError(f"dev has no rows for adapter {name!r}.")
        task.check(rows)
        found[name] = rows
    return found


def _about(vocabulary: Cut) -> dict[str, Any]:
    return {"rows": len(vocabulary.kept), "coverage": vocabulary.coverage}


def _feeds(
    encoder: Encoder, adapters: Sequence[Adapter], banks: Sequence[BankSpec]
) -> Iterator[dict[str, Any]]:
    """What the fp32 graph is calibrated on: rows without padding, the adapters taking turns."""
    routed = [adapter for adapter in adapters if adapter.sites]
    step = max(1, -(-len(routed) // CALIBRATED))
    routed = routed[::step]
    rank = max((part.a.shape[0] for a in routed for part in a.sites.values()), default=1)
    chunk = Chunk(banks, "float32", rank, len(routed))
    for slot, adapter in enumerate(routed, 1):
        sites = {
            name: (part.a.detach().cpu().numpy(), part.b.detach().cpu().numpy())
            for name, part in adapter.sites.items()
        }
        scales = {name: part.scale for name, part in adapter.sites.items()}
        for name, rows in bank_rows(banks, sites, scales, rank).items():
            chunk.arrays[name][slot] = rows
    texts = encoder.text.ids([encoder.prefix + text for text in CALIBRATION_TEXTS])
    size = encoder.text.tokenizer.get_vocab_size()
    for i, row in enumerate(calibration_rows(texts, size)):
        row = row[: encoder.text.max_length]
        feed = {INPUT_IDS: np.array([row], np.int64), MASK: np.ones((1, len(row)), np.int64)}
        if banks:
            feed |= {IDS: np.array([[i % (len(routed) + 1)]], np.int64), **chunk.arrays}
        yield feed
