"""`python -m benchmarks`, which is `make bench`: measures everything side by side, and writes the tables.

Every contender runs once in each round, so that what else the machine does touches all alike.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import ROOT, Contender, LeftOut
from benchmarks.lineup import MODELS, Inputs, other_contenders, scoring_contenders
from local_workspace.errors import UserError


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    try:
        return benchmark(parse())
    except KeyboardInterrupt:
        say("interrupted: what was written is of the whole rounds so far")
        return 130
    except UserError as error:
        say(f"error: {error.message}\n\nhint: {error.hint}")
        return 2


def benchmark(arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmarks_") as temporary:
        inputs = Inputs(
            arguments.data, arguments.work.absolute(), Path(temporary), arguments.images, arguments.before
        )
        lineup = [one for name in arguments.models for one in scoring_contenders(inputs, MODELS[name])]
        lineup += other_contenders(inputs)
        chosen = [one for one in lineup if not arguments.only or one.name in arguments.only]
        if not chosen:
            names = ", ".join(dict.fromkeys(one.name for one in lineup))
            raise UserError(f"--only {', '.join(arguments.only)}: no such contender", names)
        try:
            for contender in chosen:
                prepare(contender)
            arguments.output.mkdir(parents=True, exist_ok=True)
            for number in range(arguments.rounds):
                first = number * len(chosen) // arguments.rounds
                for contender in chosen[first:] + chosen[:first]:
                    measure(contender, number)
                report.write(arguments.output, chosen, inputs.photos_are, number + 1)
        finally:
            for contender in chosen:
                contender.end()
    say(f"{(time.monotonic() - begin) / 60:.1f} minutes")
    print(arguments.output / "results.md")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="JPEGs (default: the embedded photos)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--images", type=int, metavar="N", help="files that a contender scores, at most")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="default: both")
    parser.add_argument("--only", action="append", metavar="NAME", help="this contender; repeatable")
    parser.add_argument("--before", type=Path, metavar="DIR", help="a checkout to compare the scripts with")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks", metavar="DIR", help="of results.*"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "outputs" / "benchmarks", metavar="DIR", help="keeps the models"
    )
    return parser.parse_args()


def prepare(contender: Contender) -> None:
    lacking = [package for package in contender.packages if not find_spec(package)]
    if lacking:
        leave_out(contender, f"{' and '.join(lacking)} not installed: pip install '.[bench]'")
        return
    try:
        contender.prepare()
    except LeftOut as reason:
        leave_out(contender, str(reason))


def measure(contender: Contender, number: int) -> None:
    if contender.left_out:
        return
    try:
        figures = contender.measure(contender)
    except LeftOut as reason:
        leave_out(contender, str(reason))
        return
    contender.rounds.append(figures)
    shown = ", ".join(f"{value:,.1f} {quantity}" for quantity, value in figures.items())
    say(f"round {number + 1}: {report.full_name(contender)}: {shown}")


def leave_out(contender: Contender, reason: str) -> None:
    contender.left_out = " ".join(reason.split())
    say(f"{report.full_name(contender)}: left out: {contender.left_out}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
