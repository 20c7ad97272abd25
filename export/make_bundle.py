"""From adapters' folders to a bundle: exported, checked, timed, and its sizes said.

Command   python export/make_bundle.py adapters/sw-topics adapters/yo-topics -o build/bundle
          python export/make_bundle.py adapters/sw-topics -o build/small --corpus sw=sw.tsv
Time      about two minutes for two adapters and the bundled encoder on 2 CPU cores.

The adapters share one encoder. With --corpus, the vocabulary is cut to what those texts need. The
bundle is opened again without torch's help and held against torch's outputs (what `adaptx verify`
does), and timed at three shapes. The last line is JSON: size_mb, files_mb, coverage, ms, parity.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import adaptx as ax
from adaptx.adapters.finding import find_folder
from adaptx.cli.opening import open_together
from adaptx.cli.run import run
from adaptx.data.read import read_examples
from adaptx.errors import OptionError, ParityError
from adaptx.machine import cores
from adaptx.onnx.vocabulary import MARGIN, Cut, cut
from adaptx.runtime import Runtime
from adaptx.runtime.bench import bench
from adaptx.runtime.verify import verify


def main() -> None:
    options = arguments()
    encoder, adapters = open_together(list(map(find_folder, options.adapters)), options.encoder)
    vocabulary = cut_vocabulary(encoder, adapters, options) if options.corpus else None
    ax.export(
        encoder,
        adapters,
        options.output,
        quantize=options.quantize,
        vocabulary=vocabulary,
        overwrite=options.overwrite,
        say=lambda step: print(f"{step} …", file=sys.stderr),
    )
    with Runtime.open(options.output) as runtime:
        parity = verify(runtime)
    if failed := [name for name, found in parity.items() if found["failed"]]:
        raise ParityError(f"{options.output} answers otherwise than torch: {failed}.", parity)
    sizes = {path.relative_to(options.output).parts[0]: 0.0 for path in options.output.rglob("*")}
    for path in options.output.rglob("*"):
        if path.is_file():
            sizes[path.relative_to(options.output).parts[0]] += path.stat().st_size / 1e6
    whole = sum(sizes.values())
    print(f"Wrote {options.output} ({whole:.1f} MB).")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size:>10.2f} MB  {name}")
    coverage = vocabulary.coverage if vocabulary else {}
    for language, found in coverage.items():
        print(f"{language}: {found['tokens']:.2%} of held-out tokens are read as before.")
    timings = bench(options.output, threads=[options.threads], rounds=options.rounds)
    for timing in timings:
        shape = f"{timing.rows}x{timing.tokens}"
        print(f"{shape:>6} rows x tokens, {timing.model}: {timing.ms:.1f} ms")
    ms: dict[str, dict[str, float]] = {}
    for timing in timings:
        ms.setdefault(timing.model, {})[f"{timing.rows}x{timing.tokens}"] = round(timing.ms, 2)
    said = {"size_mb": round(whole, 2), "files_mb": {n: round(s, 2) for n, s in sizes.items()}}
    print(json.dumps({**said, "coverage": coverage, "ms": ms, "parity": parity}))


def cut_vocabulary(
    encoder: ax.Encoder, adapters: list[ax.Adapter], options: argparse.Namespace
) -> Cut:
    """The part of the vocabulary that the texts of --corpus, by language, need."""
    texts: dict[str, list[str]] = {}
    for item in options.corpus:
        language, equals, source = item.partition("=")
        if not (language and equals and source):
            raise OptionError(f"--corpus {item} must say whose texts, as in --corpus sw={item}.")
        rows = read_examples(source, labelled=False)
        texts.setdefault(language, []).extend(row.text for row in rows)
    prefixes = {prefix for prefix in (encoder.prefix, *(a.prefix for a in adapters)) if prefix}
    tokenizer = encoder.text.tokenizer.to_str()
    return cut(tokenizer, texts, margin=options.margin, prefixes=sorted(prefixes))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", nargs="+", help="adapters' folders, or user/name on the Hub")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle's new folder")
    parser.add_argument("--encoder", help="default: the one that an adapter names")
    parser.add_argument("--quantize", choices=["int8", "fp32"], default="int8")
    parser.add_argument(
        "--corpus", action="append", metavar="LANGUAGE=FILE", help="cut the vocabulary; repeat"
    )
    parser.add_argument("--margin", type=int, default=MARGIN, help="pieces beside the corpus's")
    parser.add_argument("--threads", type=positive, default=cores(), help="to time it with")
    parser.add_argument("--rounds", type=positive, default=3, help="of timing")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return number


if __name__ == "__main__":
    run(main)
