"""`adaptx adapters`: list, show, rename, verify and import adapter folders.

No torch but for import, and for verify's --encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptx.cli.show import plain, print_table

if TYPE_CHECKING:
    from adaptx.encoder.encoder import Encoder

EXAMPLES = """
[bold]Examples[/bold]

  adaptx adapters list

  adaptx adapters show adapters/sw-topics

  adaptx adapters rename adapters/sw-topics sw-news

  adaptx adapters verify adapters/sw-topics adapters/yo-topics
"""
LIST_EXAMPLES = """
[bold]Examples[/bold]

  adaptx adapters list

  adaptx adapters list runs old-runs --json

An adapter goes by a "bank" when it shares batches with others, by its "own pass"

when no bank can express its method, as a "head" (a probe), or as a whole "model".
"""
SHOW_EXAMPLES = """
[bold]Examples[/bold]

  adaptx adapters show adapters/sw-topics

  adaptx adapters show somebody/sw-topics --json
"""
RENAME_EXAMPLES = """
[bold]Examples[/bold]

  adaptx adapters rename adapters/sw-topics sw-news
"""
IMPORT_EXAMPLES = """
[bold]Examples[/bold]

  adaptx adapters import from-peft -o adapters/sw-topics --labels health,sports

  adaptx adapters import user/lora-sst2 -o adapters/sentiment --encoder FacebookAI/roberta-base
"""
VERIFY_EXAMPLES = """
[bold]Examples[/bold]

  adaptx adapters verify adapters/sw-topics

  adaptx adapters verify adapters/sw-topics --encoder bundled:multilingual-e5-small

Exit codes: 0 all are whole, 1 some are damaged (the output says which, and why), 2 bad input.
"""

app = typer.Typer(no_args_is_help=True, help="List, show, rename, verify, import adapter folders.")
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command("list", epilog=LIST_EXAMPLES)
def list_folders(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Where to look, two levels deep.", show_default="adapters"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters below some folders, one row each, a damaged one too."""
    from adaptx.adapters import inspect

    paths = [path for folder in folders or [Path("adapters")] for path in inspect.find(folder)]
    rows = [inspect.row(path) for path in dict.fromkeys(paths)]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    columns = ["name", "folder", "method", "goes by", "lang", "task", "encoder", "dev", "MB"]
    cells = []
    for row in rows:
        task = f"{row['task']}, {row['labels']} labels" if row["labels"] else row["task"]
        score = None if row["score"] is None else f"{row['score']:.3f} {row['metric']}"
        method = row["method"] if row["damage"] is None else "damaged"
        said = [row["name"], row["folder"], method, row["way"], row["language"], task]
        cells.append([*said, row["encoder"], score, f"{row['megabytes']:.1f}"])
    if rows:
        print_table(columns, cells, left=7)
    damaged = [row["damage"] for row in rows if row["damage"]]
    for line in [f"{len(rows)} adapters, {len(damaged)} of them damaged.", *damaged]:
        typer.echo(plain(line))


@app.command("show", epilog=SHOW_EXAMPLES)
def show(
    folder: Annotated[str, typer.Argument(help="The adapter's folder, or user/name on the Hub.")],
    as_json: AsJson = False,
) -> None:
    """Show all that an adapter's folder says: facts, sites, training, files."""
    from adaptx.adapters import inspect
    from adaptx.adapters.finding import find_folder

    found = inspect.details(find_folder(folder))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    training, task = found["training"], found["task"] or {}
    facts = {
        "folder": found["folder"],
        "written by": found["written_by"],
        "method": f"{found['method']} (goes by: {found['way']})",
        "encoder": f"{found['encoder']} {found['fingerprint']}".strip(),
        "language": found["language"],
        "task": task.get("kind"),
        "labels": _said(task.get("labels")),
        "prefix": repr(found["prefix"]) if found["prefix"] else None,
        "tokens read": found["max_length"],
        "weights": f"{found['weights']:,}",
        "head": ", ".join(f"{name} {shape}" for name, shape in found["head"].items()),
        **{key: _said(value) for key, value in training.items() if key != "history"},
    }
    typer.echo(plain(found["name"]))
    for name, value in facts.items():
        if value:
            typer.echo(plain(f"  {name + ':':16}{value}"))
    if found["sites"]:
        keys = ("part", "count", "ranks", "scales", "shapes")
        parts = [[_said(site[key]) for key in keys] for site in found["sites"]]
        print_table(["sites", "count", "rank", "scale", "shape"], parts)
    history = training.get("history")
    if isinstance(history, list) and history and all(isinstance(e, dict) for e in history):
        columns = list(dict.fromkeys(key for entry in history for key in entry))
        print_table(columns, [[_said(entry.get(c)) for c in columns] for entry in history])
    files = [[file["name"], f"{file['bytes']:,}", file["state"]] for file in found["files"]]
    print_table(["file", "bytes", "sha256"], files)


@app.command("rename", epilog=RENAME_EXAMPLES)
def rename(
    folder: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    name: Annotated[str, typer.Argument(help="The new name, the folder's too.")],
) -> None:
    """Give an adapter and its folder a new name."""
    from adaptx.adapters.rename import rename_folder

    typer.echo(f"{plain(folder)} is now {plain(rename_folder(folder, name))}.")


@app.command("import", epilog=IMPORT_EXAMPLES)
def import_folder(
    folder: Annotated[str, typer.Argument(help="PEFT's folder, or user/name on the Hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter's new folder.")],
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", "-e", show_default="the one that the folder names"),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix", help="Put before every text, as in its training.", show_default="none"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Comma-separated.", show_default="the encoder's"),
    ] = None,
    language: Annotated[str | None, typer.Option("--language", help="Such as sw.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Make an adapter of a folder that PEFT wrote, for an AutoModel or a classifier."""
    from dataclasses import replace

    from adaptx import storage
    from adaptx.adapters import folder as layout
    from adaptx.adapters.finding import find_folder
    from adaptx.cli.opening import encoder_name, open_encoder
    from adaptx.errors import OptionError

    storage.check_output(output, overwrite, "adapter")
    found = find_folder(folder)
    if (found / storage.MANIFEST).is_file():
        raise OptionError(f"{folder} is adaptx's own adapter already: copy the folder.")
    name = encoder or encoder_name(found)

    from adaptx.adapters.adapter import Adapter

    opened = open_encoder(name, encoder)
    names = [label.strip() for label in labels.split(",")] if labels else None
    adapter = Adapter.load(found, opened, labels=names)
    called = layout.check_name(output.resolve().name)
    facts = replace(adapter.facts, name=called, language=language, prefix=prefix or "")
    adapter.facts = facts
    adapter.save(output, overwrite=overwrite)
    answers = f"answers {', '.join(adapter.task.labels)}" if adapter.task else "has no head"
    typer.echo(
        f"Wrote {output}: {adapter.name} ({adapter.facts.method}, goes by {adapter.facts.way}), "
        f"{answers}. It is taken to belong to {name}."
    )


@app.command("verify", epilog=VERIFY_EXAMPLES)
def verify(
    folders: Annotated[
        list[str], typer.Argument(help="Adapters' folders, or user/name on the Hub.")
    ],
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", "-e", help="Check that they belong to this encoder, too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every sha256 and every tensor of adapter folders."""
    from adaptx.adapters import inspect
    from adaptx.adapters.finding import find_folder
    from adaptx.errors import FolderError

    paths = {name: find_folder(name) for name in folders}
    for name, path in paths.items():
        if not inspect.is_adapter(path):
            raise FolderError(f"{name} is no adapter's folder: adaptx adapters list finds them.")
    opened = None
    if encoder is not None:
        from adaptx.encoder.encoder import Encoder

        opened = Encoder.from_pretrained(encoder)
    found = {name: inspect.damage(path) or _misfit(path, opened) for name, path in paths.items()}
    if as_json:
        lines = [{"folder": name, "damage": said} for name, said in found.items()]
        typer.echo(json.dumps(lines, ensure_ascii=False))
    else:
        for name, said in found.items():
            typer.echo(plain(f"{name}: " + (" ".join(said) or "whole.")))
    if any(found.values()):
        raise typer.Exit(1)


def _misfit(path: Path, encoder: Encoder | None) -> list[str]:
    """Why an adapter can't be opened on an encoder, if it can't."""
    if encoder is None:
        return []
    from adaptx.adapters.adapter import Adapter
    from adaptx.errors import AdaptxError

    try:
        Adapter.load(path, encoder)
    except AdaptxError as error:
        return [str(error)]
    return []


def _said(value: Any) -> str:
    """A number, a text, or a list or small object of them."""
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    if isinstance(value, dict):
        return ", ".join(f"{plain(key)} {_said(v)}" for key, v in value.items() if v is not None)
    return f"{value:.4g}" if isinstance(value, float) else plain(value)
