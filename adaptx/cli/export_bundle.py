"""What `adaptx export` does without --merged: a bundle of adapters, and what it says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from adaptx.data.large import open_records
from adaptx.data.streams import Columns
from adaptx.errors import DataError, FolderError, OptionError, choices

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder
    from adaptx.onnx.vocabulary import Cut
    from adaptx.tasks import Task


@dataclass(frozen=True)
class Plan:
    """The options of a bundle, as they were given."""

    output: Path
    quantize: str
    bank: str | None
    sites: str | None
    dev: tuple[str, ...]
    max_drop: float | None
    columns: Columns
    languages: str | None
    corpus: tuple[str, ...]
    margin: int | None
    ort_adapters: bool
    trust_base: bool
    overwrite: bool

    @property
    def beside(self) -> Path:
        """The folder of --ort-adapters: a bundle has no file that it doesn't list."""
        return self.output.with_name(f"{self.output.name}-ort")


def export_bundle(
    names: Sequence[str], encoder: str | None, plan: Plan, *, as_json: bool, dry_run: bool
) -> None:
    """Check everything, and write the bundle unless `dry_run`."""
    from adaptx import storage
    from adaptx.adapters.finding import find_folder
    from adaptx.cli.opening import open_together

    _check(plan)
    storage.check_output(plan.output, plan.overwrite, "bundle")
    if plan.ort_adapters:
        storage.check_output(plan.beside, plan.overwrite, "ort-adapters")
    texts = _texts(plan)
    folders = [find_folder(name) for name in names]
    foreign = _trusted(folders, names, plan)
    opened, adapters = open_together(folders, encoder)
    for folder, adapter in zip(folders, adapters, strict=True):
        if folder in foreign:
            labels = f"answers {', '.join(adapter.task.labels)}" if adapter.task else "has no head"
            _say(f"{folder} is taken to belong to {opened.name}; it {labels}")

    from adaptx.onnx.bundle import MAX_DROP, checked_dev, chosen_sites, export
    from adaptx.onnx.gate import probe_ids
    from adaptx.onnx.ort_adapters import check_adapters

    sites = list(opened.sites) if plan.sites else None
    where = chosen_sites(opened, adapters, sites)
    if plan.ort_adapters:
        check_adapters(adapters)
    rows = checked_dev(adapters, _dev(plan, adapters))
    cut = _cut(opened, adapters, texts, plan)
    asked = len(probe_ids(opened, cut))
    if dry_run:
        size = _megabytes(opened, folders, plan, cut)
        said = f", {sum(map(len, rows.values()))} dev rows" if rows else ""
        where_to = f"{plan.output} and {plan.beside}" if plan.ort_adapters else str(plan.output)
        typer.echo(
            f"Would write {where_to}: {len(adapters)} adapters ({choices(_called(adapters))}), "
            f"{plan.quantize}, {len(where)} sites of {opened.name}, about {size:.0f} MB, if they "
            f"answer like torch on {asked} probe texts{said}."
        )
        return
    _say(f"Exporting {choices(_called(adapters))} to {plan.output}")
    report = export(
        opened,
        adapters,
        plan.output,
        quantize=plan.quantize,
        bank=plan.bank,
        sites=sites,
        dev=rows,
        max_drop=MAX_DROP if plan.max_drop is None else plan.max_drop,
        vocabulary=cut,
        overwrite=plan.overwrite,
        say=_say,
    )
    if plan.ort_adapters:
        _say(f"Writing {plan.beside}")
        _write_ort_adapters(opened, adapters, cut, plan)
    size = sum(path.stat().st_size for path in plan.output.rglob("*") if path.is_file()) / 1e6
    if as_json:
        coverage = cut.coverage if cut else {}
        whole = {**report, "coverage": coverage, "megabytes": round(size, 1)}
        typer.echo(json.dumps(whole, ensure_ascii=False))
        return
    _show(report)
    typer.echo(f"Wrote {plan.output}, {size:.3g} MB; adaptx verify checks it anywhere.")
    if plan.ort_adapters:
        typer.echo(f"Wrote {plan.beside}, for onnxruntime's own adapters; its README says how.")


def _say(step: str) -> None:
    typer.echo(f"{step} …", err=True)


def _called(adapters: Sequence[Adapter]) -> list[str]:
    return [adapter.name for adapter in adapters]


def _check(plan: Plan) -> None:
    """Refuse options that can't be, or would do nothing."""
    if plan.bank not in (None, "fp32", "fp16"):
        raise OptionError(f"--bank {plan.bank} is none of fp32, fp16.")
    if plan.bank == "fp16" and plan.quantize == "fp32":
        raise OptionError("--bank fp16 goes with --quantize int8: an fp32 bundle has fp32 banks.")
    if plan.sites not in (None, "all"):
        raise OptionError(f"--sites {plan.sites}: there is all; without it, where adapters attach.")
    if plan.max_drop is not None and not plan.dev:
        raise OptionError("--max-drop is of the score on --dev: give --dev too.")
    if plan.max_drop is not None and not 0 <= plan.max_drop <= 100:
        raise OptionError(f"--max-drop {plan.max_drop} must be 0 to 100 points.")
    if not plan.languages and (plan.corpus or plan.margin is not None):
        raise OptionError("--corpus and --margin are of a cut vocabulary: give --languages too.")


def _trusted(folders: Sequence[Path], names: Sequence[str], plan: Plan) -> set[Path]:
    """The folders that PEFT wrote, when they may be taken at their word."""
    from adaptx import storage
    from adaptx.adapters import folder as layout

    found = set()
    for folder, name in zip(folders, names, strict=True):
        if (folder / storage.MANIFEST).is_file() or not (folder / layout.CONFIG).is_file():
            continue
        if not plan.trust_base:
            raise FolderError(
                f"{name} was written by PEFT, and nothing in it proves which encoder it was "
                f"trained on: pass --trust-base to take it to belong to the encoder that it names, "
                f"or that --encoder does; or make an adapter of it first, with its own labels and "
                f"prefix: adaptx adapters import {name} -o …"
            )
        found.add(folder)
    return found


def _named(item: str) -> tuple[str, str]:
    """(name, source) of NAME=FILE; the name is empty where FILE stands alone."""
    name, equals, source = item.partition("=")
    return ("", item) if not equals or Path(item).exists() else (name, source)


def _dev(plan: Plan, adapters: Sequence[Adapter]) -> dict[str, Sequence[Any]]:
    """Rows by adapter: those of its name, else those that have no label but its own."""
    found: dict[str, Sequence[Any]] = {}
    shared: dict[str, Sequence[Any]] = {}
    kinds = {adapter.name: adapter.task.kind for adapter in adapters if adapter.task}
    for item in plan.dev:
        name, source = _named(item)
        if name in found:
            raise OptionError(f"--dev {item}: there is a --dev for {name} already.")
        if name and name not in kinds:
            raise OptionError(
                f"--dev {item}: there is no adapter {name!r} with a task; there is "
                f"{choices(kinds) or 'none'}."
            )
        possible = {kinds[name]} if name else set(kinds.values())
        if len(possible) != 1:
            raise OptionError(
                f"--dev {item}: the adapters have {len(possible)} kinds of task, so say whose it "
                f"is, as in --dev NAME={source}."
            )
        rows = open_records(source, possible.pop(), plan.columns)
        if name:
            found[name] = rows
            continue
        fit = [adapter.name for adapter in adapters if adapter.task and _fits(adapter.task, rows)]
        if not fit:
            labels = sorted({label for row in rows for label in row.labels})
            raise OptionError(
                f"--dev {item} has the labels {choices(labels)}, which none of the adapters "
                f"answers."
            )
        if twice := [name for name in fit if name in shared]:
            raise OptionError(
                f"--dev {item}: there is a --dev for {choices(twice)} already; say which is whose, "
                f"as in --dev {twice[0]}={item}."
            )
        shared |= dict.fromkeys(fit, rows)
    return {**shared, **found}


def _fits(task: Task, rows: Sequence[Any]) -> bool:
    try:
        task.check(rows)
    except DataError:
        return False
    return True


def _texts(plan: Plan) -> dict[str, list[str]]:
    """The texts of each language of a cut vocabulary; {} for a whole one."""
    from adaptx.data.read import read_examples

    if not plan.languages:
        return {}
    languages = [name.strip() for name in plan.languages.split(",")]
    if not all(languages) or len(set(languages)) < len(languages):
        raise OptionError(f"--languages {plan.languages} must be different names, as in sw,en.")
    texts: dict[str, list[str]] = {name: [] for name in languages}
    for item in plan.corpus:
        name, source = _named(item)
        if name and name not in texts:
            raise OptionError(f"--corpus {item}: {name!r} is none of --languages {plan.languages}.")
        rows = read_examples(source, text_column=plan.columns.text, labelled=False)
        for language in [name] if name else languages:
            texts[language] += [row.text for row in rows]
    if without := [name for name, rows in texts.items() if not rows]:
        raise OptionError(
            f"--languages {plan.languages}: {choices(without)} has no texts to count from; give "
            f"some, as in --corpus {without[0]}=texts.tsv."
        )
    return texts


def _cut(
    encoder: Encoder, adapters: Sequence[Adapter], texts: Mapping[str, list[str]], plan: Plan
) -> Cut | None:
    """The part of the vocabulary that the texts need, and what it covers, said."""
    if not texts:
        return None
    from adaptx.onnx.vocabulary import MARGIN, cut

    _say("Cutting the vocabulary")
    found = cut(
        encoder.text.tokenizer.to_str(),
        texts,
        margin=MARGIN if plan.margin is None else plan.margin,
        prefixes=[*{p: None for p in (encoder.prefix, *(a.prefix for a in adapters)) if p}],
    )
    whole = encoder.text.tokenizer.get_vocab_size()
    typer.echo(f"Vocabulary: {len(found.kept):,} of {whole:,} pieces.", err=True)
    for language, covered in found.coverage.items():
        typer.echo(
            f"  {language}: of {covered['held_out']:,} held-out texts, {covered['texts']:.1%} are "
            f"read exactly as before, and {covered['tokens']:.2%} of their tokens.",
            err=True,
        )
    for adapter in adapters:
        own = adapter.facts.language
        if own is not None and own not in texts:
            typer.echo(
                f"Warning: {adapter.name} is of the language {own}, none of --languages "
                f"{plan.languages}: pieces that its texts need may be gone.",
                err=True,
            )
    return found


def _megabytes(encoder: Encoder, folders: Sequence[Path], plan: Plan, cut: Cut | None) -> float:
    """About what the bundle will take."""
    weights, tokenizer = encoder.parameters, len(encoder.text.tokenizer.to_str().encode())
    if cut is not None:
        weights -= (encoder.config.vocab_size - len(cut.kept)) * encoder.hidden_size
        tokenizer = len(cut.tokenizer_json.encode())
    own = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    return (weights * (1 if plan.quantize == "int8" else 4) + tokenizer + own) / 1e6


def _write_ort_adapters(
    encoder: Encoder, adapters: Sequence[Adapter], cut: Cut | None, plan: Plan
) -> None:
    """Write the bundle's graph and adapters once more, as onnxruntime's own API takes them."""
    import onnx

    from adaptx.onnx.ort_adapters import write_ort_adapters
    from adaptx.runtime.layout import MODEL, read_bundle

    facts, _ = read_bundle(plan.output)
    model = onnx.load(plan.output / MODEL)
    names = {bank.name for bank in facts.banks}
    for value in model.graph.input:
        if value.name in names:  # fp32 files, whatever the bundle keeps: a cast that is there stays
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    write_ort_adapters(
        model,
        facts.banks,
        adapters,
        plan.beside,
        tokenizer=cut.tokenizer_json if cut else encoder.text.tokenizer.to_str(),
        max_length=encoder.text.max_length,
        overwrite=plan.overwrite,
    )


def _show(report: Mapping[str, Any]) -> None:
    from adaptx.cli.show import print_table
    from adaptx.cli.verify import show_report
    from adaptx.tasks.base import title

    show_report({way: report[way] for way in ("fp32", "int8") if way in report})
    typer.echo(f"Compared with torch on {report['texts']} probe texts.")
    if "dev" in report:
        rows = []
        for name, one in report["dev"].items():
            shares = [f"{one[way]:.3f}" for way in ("torch", "bundle")]
            drop, low, high = (f"{100 * one[key]:.2f}" for key in ("drop", "low", "high"))
            metric = title(one["metric"])
            rows.append((name, metric, one["rows"], *shares, drop, f"{low} to {high}"))
        columns = ("dev", "score", "rows", "torch", "bundle", "drop in points", "95% interval")
        typer.echo()
        print_table(columns, rows)
