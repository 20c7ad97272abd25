"""The options that several commands have alike: columns of data, and how tags are read."""

from __future__ import annotations

from typing import Annotated

import typer

TextColumn = Annotated[
    str | None, typer.Option("--text-column", show_default="text, sentence, tweet …")
]
OtherColumn = Annotated[str | None, typer.Option("--other-column", help="A pair's second text.")]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", show_default="label, category, topic …")
]
Scheme = Annotated[
    str | None,
    typer.Option("--scheme", help="Of tags: bio, or plain (parts of speech).", show_default="bio"),
]
Repair = Annotated[
    bool, typer.Option("--repair", help="Let an I- that continues nothing begin an entity.")
]
