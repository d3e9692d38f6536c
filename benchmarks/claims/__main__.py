"""`python -m benchmarks.claims --out DIR`: runs what is missing, then writes the table of verdicts.

    python -m benchmarks.claims --out runs/claims                        all six claims at the scale of two cores
    python -m benchmarks.claims --out runs/claims --claims 1,3           two of them
    python -m benchmarks.claims --out runs/claims --seeds 0               one seed, beside a process for each other one
    python -m benchmarks.claims --out runs/claims --experiments hart      one system, beside processes for others
    python -m benchmarks.claims --out runs/claims --base strings_4=runs/strings_base/model
    python -m benchmarks.claims --out benchmarks/claims --report         only the table, of the results that are there

The command can be stopped at any time and given again: finished results, models and evaluated tasks are kept, and a
training run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Collection, Container, Sequence
from typing import Any

from benchmarks.claims.comparisons import Claim
from benchmarks.claims.families import FAMILIES
from benchmarks.claims.pictures import write_pictures
from benchmarks.claims.report import aggregate, markdown
from benchmarks.claims.results import read_results, run
from benchmarks.claims.settings import SETTINGS
from benchmarks.claims.table import claims, experiments
from benchmarks.claims.training import Workspace
from hyperflax.cli.host_memory import keep_freed_memory
from hyperflax.errors import HyperflaxError
from hyperflax.files import atomic_file

SCALES = tuple(dict.fromkeys(scale for _, scale in SETTINGS))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after an error of ours, which is printed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="folder of all that is written")
    parser.add_argument("--claims", default="1,2,3,4,5,6", metavar="N,N", help="run these alone (default: all)")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="sizes of everything (default: cpu)")
    parser.add_argument("--families", metavar="F,F", help="default: those of the scale whose data is at hand")
    parser.add_argument("--seeds", metavar="N,N", help="run these alone (default: all of every experiment)")
    parser.add_argument("--experiments", metavar="E,E", help="run these alone (default: all that the claims need)")
    parser.add_argument("--base", action="append", default=[], metavar="NAME=DIR", help="a base that is there already")
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of what is there")
    arguments = parser.parse_args(argv)
    try:
        chosen = _numbers("--claims", arguments.claims, range(1, 7), parser)
        bases = dict(_pair(text, parser) for text in arguments.base)
        every = {seed for setting in SETTINGS.values() for seed in setting.seeds}
        seeds = _numbers("--seeds", arguments.seeds, every, parser) if arguments.seeds else every
        _run(arguments, chosen, seeds, Workspace(arguments.out, bases=bases))
    except HyperflaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace, numbers: set[int], seeds: set[int], workspace: Workspace) -> None:
    tables = {family: claims(SETTINGS[family, scale]) for family, scale in SETTINGS if scale == arguments.scale}
    asked = arguments.families.split(",") if arguments.families else [*tables]
    if unknown := set(asked) - set(tables):
        raise HyperflaxError(
            f"--families: expected some of {[*tables]} at scale {arguments.scale}, got '{min(unknown)}'"
        )
    there = {family for family in tables if (workspace.out / "results" / arguments.scale / family).is_dir()}
    for family in [*asked]:
        missing = FAMILIES[family].missing() if not arguments.report else "" if family in there else "no results"
        if missing:
            print(f"{family} is left out: {missing}", file=sys.stderr)
            asked.remove(family)
    if not asked:
        raise HyperflaxError("expected a family that is not left out, so no table is written")
    chosen = {family: tuple(claim for claim in tables[family] if claim.number in numbers) for family in asked}
    if unknown := set(workspace.bases) - {
        experiment.base.name for table in chosen.values() for experiment in experiments(table).values()
    }:
        raise HyperflaxError(f"--base: expected names of bases that these claims need, got {sorted(unknown)}")
    names = {name for table in chosen.values() for name in experiments(table)}
    wanted = set(arguments.experiments.split(",")) if arguments.experiments else names
    if wanted - names:
        raise HyperflaxError(
            f"--experiments: expected some of {sorted(names)}, which these claims need, got {sorted(wanted - names)}"
        )
    failed = []
    if not arguments.report:
        for family, table in chosen.items():
            failed += run_all(family, table, workspace, arguments.scale, seeds, wanted)
    # Of a family that was not asked for, what it has found earlier stays in the table.
    shown = {family: table for family, table in tables.items() if family in asked or family in there}
    print(write_tables(arguments.out, arguments.scale, shown), end="")
    if failed:
        raise HyperflaxError("; ".join(failed))


def run_all(
    family: str,
    table: Sequence[Claim],
    workspace: Workspace,
    scale: str,
    seeds: Container[int],
    names: Container[str] | None = None,
) -> list[str]:
    """Runs every experiment of some claims that has no current result, for those of its seeds that are in `seeds`.

    With `names`, only the experiments of those names, and what they depend on. One that fails does not keep the others
    from being run: returned is what was wrong.
    """
    failed = []
    known = experiments(table).values()
    chosen = [one for one in known if names is None or one.name in names]
    jobs = [(seed, one) for one in chosen for seed in one.seeds if seed in seeds]
    jobs.sort(key=lambda job: job[0])  # all experiments for the first seed before any for the second: a first look
    for number, (seed, experiment) in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {family}: {experiment.name}, seed {seed}", flush=True)
        try:
            run(experiment, seed, workspace, scale)
        except HyperflaxError as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed.append(f"{family}: {experiment.name}, seed {seed}: {error}")
    return failed


def write_tables(out: pathlib.Path, scale: str, tables: dict[str, tuple[Claim, ...]]) -> str:
    """Writes verdicts-SCALE.json, verdicts-SCALE.md and the pictures from `OUT/results`; returns the markdown."""
    findings: list[dict[str, Any]] = []
    for family, table in tables.items():
        results = read_results(out / "results", scale, family, experiments(table))
        findings.append(aggregate(family, scale, table, results))
        write_pictures(findings[-1], out)
    text = markdown(findings)
    for ending, content in (("json", json.dumps(findings, indent=1) + "\n"), ("md", text)):
        with atomic_file(out / f"verdicts-{scale}.{ending}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text


def _numbers(flag: str, text: str, allowed: Collection[int], parser: argparse.ArgumentParser) -> set[int]:
    numbers = {int(number) if number.isdecimal() else -1 for number in text.split(",")}
    if not numbers <= set(allowed):
        parser.error(f"{flag}: expected numbers out of {sorted(allowed)}, got '{text}'")
    return numbers


def _pair(text: str, parser: argparse.ArgumentParser) -> tuple[str, str]:
    name, found, directory = text.partition("=")
    if not found:
        parser.error(f"--base: expected NAME=DIR, got '{text}'")
    return name, directory


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
