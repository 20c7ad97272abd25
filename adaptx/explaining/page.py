"""An HTML page of one file: no script, nothing from elsewhere, readable in dark and in light.

Whatever comes from a text, a label or a folder is escaped. Colours are Okabe & Ito's, darker where
the page is dark; each word's figures stand in a table too, and what speaks against is underlined,
so that no colour is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from adaptx.explaining.show import (
    SITES,
    headline,
    layer_rows,
    notes,
    site_rows,
    strengths,
    word_rows,
)

if TYPE_CHECKING:
    from adaptx.evaluation.audit import Audit
    from adaptx.explaining.explain import Explanation, Part

STYLE = """
:root { color-scheme: light dark; --for: 0 114 178; --against: 213 94 0; --line: #8886; }
@media (prefers-color-scheme: dark) { :root { --for: 0 100 170; --against: 170 75 0; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.text { font-size: 1.25rem; line-height: 2.1; overflow-wrap: anywhere; }
.for { background: rgb(var(--for) / var(--a)); }
.against { background: rgb(var(--against) / var(--a)); text-decoration: underline dotted; }
.for, .against { border-radius: .2em; padding: .15em 0; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: start; font-weight: 600; padding-block: .3rem; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: start; }
td.n, th.n { text-align: end; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A page; `title` is text, `body` HTML."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><main><h1>{escape(title)}</h1>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> str:
    """A table; the first `left` columns are text, the others figures. None is shown as a dash."""

    def cells(row: Sequence[object], tag: str) -> str:
        made = []
        for place, value in enumerate(row):
            said = "–" if value is None else str(value)
            kind = ' dir="auto"' if place < left else ' class="n"'
            scope = ' scope="col"' if tag == "th" else ""
            made.append(f"<{tag}{scope}{kind}>{escape(said)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead>{cells(columns, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def explanation_page(found: Explanation) -> str:
    """The page of one explanation."""
    body = [f"<p>{escape(headline(found))}</p>"]
    for which, text in enumerate(found.texts):
        body.append(f'<p class="text" dir="auto">{_coloured(text, which, found.words)}</p>')
    body.append(
        f"<p>Blue speaks for {escape(found.label)}, orange (underlined) against it, by integrated "
        f"gradients; the stronger, the more.</p>"
    )
    body += [f"<p>{escape(note)}</p>" for note in notes(found)]
    columns, rows = word_rows(found)
    body.append(table(f"Words, in {found.unit}", columns, rows))
    if found.layers:
        body.append(table("Change of the states by the adapter", *layer_rows(found)))
    if found.sites:
        title = f"The {min(SITES, len(found.sites))} sites that change most"
        body.append(table(title, *site_rows(found)))
    return page(f"{found.adapter}: {found.label}", body)


def _coloured(text: str, which: int, words: Sequence[Part]) -> str:
    made, at = [], 0
    for word, strength in zip(words, strengths(words), strict=True):
        if word.which != which or strength is None:
            continue
        kind = "for" if strength >= 0 else "against"
        said = f"{word.gradients:+.3f}"
        made.append(
            f"{escape(text[at : word.start])}"
            f'<span class="{kind}" style="--a:{abs(strength) * 0.75:.3f}" title="{said}">'
            f"{escape(text[word.start : word.end])}</span>"
        )
        at = word.end
    return "".join([*made, escape(text[at:])])


def audit_page(found: Audit) -> str:
    """The page of an audit."""
    from adaptx.evaluation.audit_tables import parts

    body = [f"<p>{found.rows} rows.</p>"]
    for part in parts(found):
        body.append(table(part.title, part.columns, part.rows, part.left))
        body += [f"<p>{escape(note)}</p>" for note in part.notes]
    return page(f"Audit of {found.adapter}", body)
