"""`adaptx push`: an adapter's folder into a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptx.errors import FolderError, OptionError

EXAMPLES = """
[bold]Examples[/bold]

  adaptx push adapters/sw-topics somebody/sw-topics --dry-run

  adaptx push adapters/sw-topics somebody/sw-topics --private

  adaptx push adapters/sw-topics somebody/sw-topics --revision v2 --message "Better dev scores"

Needs a token that may write: log in with `hf auth login`, or set HF_TOKEN.
"""


def push(
    folder: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    repository: Annotated[str, typer.Argument(help="user/name; made when it doesn't exist.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository a private one.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The branch.", show_default="main")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="The commit's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder, say what would go, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Put an adapter into a repository of the Hub; a damaged one is refused."""
    from adaptx import hub, storage
    from adaptx.adapters import folder as layout
    from adaptx.adapters import inspect

    asked = hub.split(repository)
    if asked is None or asked[1] is not None:
        raise OptionError(
            f"{repository!r} can't be a repository's name: give it as user/name (and a branch "
            f"with --revision)."
        )
    if not folder.is_dir() or not inspect.is_adapter(folder):
        raise FolderError(f"{folder} is no adapter's folder.")
    if damage := inspect.damage(folder):
        raise FolderError(f"{folder} is damaged, so it isn't pushed: {' '.join(damage)}")
    facts, manifest = inspect.about(folder)
    own = {storage.MANIFEST, layout.CONFIG, layout.WEIGHTS, layout.HEAD}
    names = [storage.MANIFEST, *inspect.needed(facts, manifest), layout.CARD]
    files = {p.name: p.stat().st_size for p in map(folder.joinpath, names) if p.is_file()}
    encoder = facts.encoder
    found: dict[str, Any] = {"repository": repository, "revision": revision or "main"}
    found |= {"files": files, "encoder": encoder}
    if not dry_run:
        found["address"] = hub.upload(
            folder,
            repository,
            [*files],
            sorted(own - files.keys()),
            private=private,
            revision=revision,
            message=message or f"{facts.name}, by adaptx",
        )
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    size = f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB"
    if dry_run:
        kind = "private repository" if private else "repository"
        typer.echo(f"Would push {', '.join(files)} ({size}) to the {kind} {repository}.")
    else:
        typer.echo(f"Pushed {size}: {found['address']}")
    if encoder.startswith("bundled:"):
        typer.echo(
            f"Its encoder, {encoder}, comes with adaptx[bundled]: whoever opens this adapter needs "
            f"adaptx."
        )
    elif not hub.is_repository(encoder):
        typer.echo(f"Its encoder is named {encoder!r}, which others may not find by that name.")
