"""What a table of runs holds, and how often fine-tuning beat the adapter that it could have started from.

    report.json    what `summary` returns
    report.md      rows, data sets by corpus, statuses, shares
    report.png     the share of every data set; gains by start

Runs are compared that trained something, were completed, and whose data set has a generated adapter. Shares are means
over data sets of the share of their runs, so that a data set with many runs counts once; intervals resample data sets.

>>> told = summary(table.read("runs"))
>>> told["better_than_generated"]
{'mean': 0.41, 'low': 0.35, 'high': 0.47}
>>> write("report", told)
"""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperflax.evaluation.intervals import bootstrap_mean
from hyperflax.tuner.pipeline import TUNE
from hyperflax.tuner.reporting import save_png, write_report
from hyperflax.tuner.table import COMPLETED, STATUSES, Run


def summary(runs: Iterable[Run]) -> dict[str, Any]:
    """Returns json.

    Returns:
      `runs`, `datasets` and `pipelines`, numbers; `seconds` of all; `corpora`, each with its `datasets` and `runs`;
      `status`, runs of each; `compared`, the runs that could be compared with the generated adapter on the test split;
      `better_than_generated`, the `mean`, `low` and `high` of the share that beat it, None where nothing could be
      compared; `by_start`, the same for each start, with its `runs`; `per_dataset`, a row for each data set that has
      compared runs: `runs`, `share`, and `best`, the largest difference of a test score from the generated one.
    """
    runs = list(runs)
    fair = [
        run
        for run in runs
        if run.status == COMPLETED and run.pipeline.method == TUNE and not math.isnan(run.generated_score)
    ]
    corpora = sorted({run.corpus for run in runs})
    starts = sorted({str(run.pipeline.init) for run in fair})
    return {
        "runs": len(runs),
        "datasets": len({run.dataset_hash for run in runs}),
        "pipelines": len({run.pipeline.id for run in runs}),
        "seconds": sum(sum(run.seconds) for run in runs),
        "corpora": {
            corpus: {
                "datasets": len({run.dataset_hash for run in runs if run.corpus == corpus}),
                "runs": sum(run.corpus == corpus for run in runs),
            }
            for corpus in corpora
        },
        "status": {status: sum(run.status == status for run in runs) for status in STATUSES},
        "compared": len(fair),
        "better_than_generated": _share(fair),
        "by_start": {start: _of_start(fair, start) for start in starts},
        "per_dataset": [_dataset(of_one) for of_one in _by_dataset(fair)],
    }


def write(folder: pathlib.Path | str, told: Mapping[str, Any]) -> None:
    """Writes report.json, report.md and report.png; `told` is what `summary` returns."""
    write_report(folder, told, markdown(told), _draw)


def markdown(told: Mapping[str, Any]) -> str:
    """Returns the summary as a page."""
    corpora = "\n".join(f"| {name} | {of['datasets']} | {of['runs']} |" for name, of in told["corpora"].items())
    status = "\n".join(f"| {name} | {count} |" for name, count in told["status"].items())
    starts = "\n".join(f"| {name} | {of['runs']} | {_words(of)} |" for name, of in told["by_start"].items())
    per_dataset = "\n".join(
        f"| {one['dataset']} | {one['corpus']} | {one['runs']} | {one['share']:.2f} | {one['best']:+.3f} |"
        for one in told["per_dataset"]
    )
    return f"""# {told["runs"]} fine-tuning runs on {told["datasets"]} data sets

{told["pipelines"]} different pipelines, {told["seconds"] / 3600:.1f} hours of training and scoring.

| corpus | data sets | runs |
|---|---|---|
{corpora}

| status | runs |
|---|---|
{status}

## Better than as generated

{told["compared"]} completed runs trained something on a data set that has a generated adapter. The share of a data \
set's runs that beat this adapter on the test split, mean over data sets with its 95% interval: \
{_words(told["better_than_generated"])}.

| start | runs | share that beat it |
|---|---|---|
{starts}

| data set | corpus | runs | share | best minus as generated |
|---|---|---|---|---|
{per_dataset}

![Shares by data set, and the best gain](report.png)
"""


def _words(interval: Mapping[str, Any] | None) -> str:
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else "nothing compared"


def _by_dataset(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.corpus, run.dataset)):
        groups.setdefault(run.dataset_hash, []).append(run)
    return list(groups.values())


def _beat(runs: Sequence[Run]) -> float:
    return sum(run.test_score > run.generated_score for run in runs) / len(runs)


def _share(runs: Sequence[Run]) -> dict[str, float] | None:
    if not runs:
        return None
    interval = bootstrap_mean([_beat(of_one) for of_one in _by_dataset(runs)])
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _of_start(runs: Sequence[Run], start: str) -> dict[str, Any]:
    chosen = [run for run in runs if run.pipeline.init == start]
    return {"runs": len(chosen), **(_share(chosen) or {})}


def _dataset(runs: Sequence[Run]) -> dict[str, Any]:
    best = max(run.test_score - run.generated_score for run in runs)
    about = {"dataset": runs[0].dataset, "corpus": runs[0].corpus, "runs": len(runs)}
    return {**about, "share": _beat(runs), "best": best}


def _draw(told: Mapping[str, Any], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    shares, gains = figure.subplots(1, 2)
    begin = 0
    for corpus, count in Counter(one["corpus"] for one in told["per_dataset"]).items():
        rows = [one for one in told["per_dataset"] if one["corpus"] == corpus]
        places = range(begin, begin + count)
        shares.scatter(places, sorted(one["share"] for one in rows), s=14, label=corpus)
        gains.scatter(places, sorted(one["best"] for one in rows), s=14)
        begin += count
    shares.set(xlabel="data sets", ylabel="share of runs better than as generated", ylim=(-0.02, 1.02), xticks=[])
    gains.set(xlabel="data sets", ylabel="best test score minus as generated", xticks=[])
    gains.axhline(0.0, color="0.6", lw=0.8)
    if begin:
        shares.legend(frameon=False)
    save_png(figure, path)
