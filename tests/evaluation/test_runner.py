"""The evaluation loop: scores, order of work, resuming, refusals."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import pytest

import hyperflax
from hyperflax import locks
from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.evaluation import EvaluationTask, evaluate_conditions, run_info
from hyperflax.processes import Processes

TASKS = [
    EvaluationTask(
        name=f"add_{i}",
        inputs=("x", "y"),
        references=((f"x{i}",), (f"y{i}", "y0")),
        support=(("a", f"a{i}"),),
        category="even" if i % 2 == 0 else "odd",
    )
    for i in range(7)
]
CONFIG = {"model": "toy", "seed": 0}


class Oracle:
    """Reads the suffix off the support and adds it; counts its calls and may die at one of them."""

    def __init__(self, dies_at: int | None = None):
        self.batches: list[list[str]] = []
        self.dies_at = dies_at

    def __call__(self, batch: Sequence[EvaluationTask]) -> list[list[str]]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append([task.name for task in batch])
        return [[text + task.support[0][1][1:] for text in task.inputs] for task in batch]


def bare(batch: Sequence[EvaluationTask]) -> list[list[str]]:
    return [list(task.inputs) for task in batch]


def run(generated: Any, **options: Any) -> Any:
    conditions = {"bare": bare, "generated": generated}
    return evaluate_conditions(TASKS, conditions, "exact_match", batch_size=3, progress=False, **options)


def test_scores_and_predictions() -> None:
    oracle = Oracle()
    table = run(oracle)
    assert oracle.batches == [["add_0", "add_1", "add_2"], ["add_3", "add_4", "add_5"], ["add_6"]]
    assert table.scores == {"bare": {t.name: 0.0 for t in TASKS}, "generated": {t.name: 1.0 for t in TASKS}}
    assert table.predictions["generated"]["add_4"] == ["x4", "y4"]
    assert table.seconds["generated"] >= 0


def test_small_tasks_do_not_cost_what_a_large_one_does(tmp_path: pathlib.Path) -> None:
    """Tasks of like size share a batch; the table is in the order of the tasks, and what is finished stays so."""
    sizes = {"a": 1, "b": 100, "c": 1, "d": 100, "e": 3, "f": 2, "g": 100}
    tasks = [EvaluationTask(name, n * ("x",), n * (("x1",),), (("a", "a1"),)) for name, n in sizes.items()]
    oracle = Oracle()
    table = evaluate_conditions(tasks, {"generated": oracle}, "exact_match", batch_size=4, progress=False)
    assert oracle.batches == [["a", "c", "f"], ["e"], ["b", "d", "g"]]
    assert list(table.scores["generated"].items()) == [(name, 1.0) for name in sizes]
    options: dict[str, Any] = {"batch_size": 2, "out": tmp_path, "config": CONFIG, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate_conditions(tasks, {"generated": Oracle(dies_at=3)}, "exact_match", **options)
    second = Oracle()
    assert evaluate_conditions(tasks, {"generated": second}, "exact_match", **options).scores == table.scores
    assert second.batches == [["g"]]


def test_report_carries_counts_and_categories() -> None:
    report = run(Oracle()).report(run_info(CONFIG, seconds=1.0), differences=[("generated", "bare")])
    assert report["metric"] == "exact_match"
    assert report["per_task"][1] == {
        "task": "add_1",
        "scores": {"bare": 0.0, "generated": 1.0},
        "n_examples": 2,
        "category": "odd",
    }
    assert report["differences"][0]["mean"] == 1.0


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_killed_run_resumes(tmp_path: pathlib.Path, dies_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Oracle(dies_at), out=tmp_path, config=CONFIG)
    second = Oracle()
    table = run(second, out=tmp_path, config=CONFIG)
    assert len(second.batches) == 3 - dies_at
    unbroken = run(Oracle())
    assert table.scores == unbroken.scores
    assert table.predictions == unbroken.predictions
    third = Oracle()
    assert run(third, out=tmp_path, config=CONFIG).scores == unbroken.scores
    assert third.batches == []


@dataclasses.dataclass(frozen=True)
class Threads(Processes):
    """Processes that are threads here, and wait for each other as such."""

    meeting: threading.Barrier | None = None

    def wait(self, what: str) -> None:
        self.meeting.wait(timeout=60)


@pytest.mark.parametrize("earlier", [None, 1, 3])
def test_several_processes_find_what_one_does(tmp_path: pathlib.Path, earlier: int | None) -> None:
    """Each does whole batches of its own; what a run of another number of processes had done stays done."""
    unbroken = run(Oracle())
    if earlier is not None:
        # Alone it dies at its second batch; one of three has no second batch, and does not find the others'.
        with pytest.raises((KeyboardInterrupt, DataError)):
            run(Oracle(dies_at=1), out=tmp_path, config=CONFIG, processes=Threads(0, earlier, threading.Barrier(1)))
    meeting, oracles = threading.Barrier(2), [Oracle(), Oracle()]

    def share(index: int) -> Any:
        return run(oracles[index], out=tmp_path, config=CONFIG, processes=Threads(index, 2, meeting))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(share, range(2)))
    for table in tables:
        assert table.scores == unbroken.scores
        assert table.predictions == unbroken.predictions
    first, second = [["add_0", "add_1", "add_2"], ["add_6"]], [["add_3", "add_4", "add_5"]]
    assert oracles[0].batches == (first if earlier is None else first[1:])
    assert oracles[1].batches == second
    third = Oracle()
    assert run(third, out=tmp_path, config=CONFIG).scores == unbroken.scores
    assert third.batches == []


def test_several_processes_need_a_folder_that_all_see(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="several processes need `out`"):
        run(Oracle(), processes=Processes(0, 2))
    with pytest.raises(DataError, match=r"6 of 14 results are missing, .* 'add_3'; .* that all hosts see"):
        run(Oracle(), out=tmp_path, config=CONFIG, processes=Threads(0, 2, threading.Barrier(1)))


def test_a_folder_that_is_another_on_every_host_is_refused_before_the_work(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    second, alone = Oracle(), threading.Barrier(1)
    with pytest.raises(ConfigError, match="expected a folder that all hosts of the job share"):
        run(second, out=tmp_path / "of_the_second", config=CONFIG, processes=Threads(1, 2, alone))
    assert second.batches == []


def test_a_torn_line_is_done_again_in_its_old_batch(tmp_path: pathlib.Path) -> None:
    whole = run(Oracle(), out=tmp_path, config=CONFIG)
    (journal,) = tmp_path.iterdir()
    journal.write_bytes(journal.read_bytes()[:-5])
    lines = len(journal.read_text().splitlines())
    oracle = Oracle()
    # add_6 is torn; drop add_5, too: its batch runs with all three tasks, as it did before.
    content = [line for line in journal.read_text().splitlines(keepends=True) if "add_5" not in line or "bare" in line]
    journal.write_text("".join(content))
    assert run(oracle, out=tmp_path, config=CONFIG).scores == whole.scores
    assert oracle.batches == [["add_3", "add_4", "add_5"], ["add_6"]]
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(rows) == lines
    assert len({(row["condition"], row["task"]) for row in rows}) == len(rows) == 14


def test_a_broken_line_is_named(tmp_path: pathlib.Path) -> None:
    run(Oracle(), out=tmp_path, config=CONFIG)
    (journal,) = tmp_path.iterdir()
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], '{"task": 3}\n', *lines[2:]]))
    with pytest.raises(DataError, match=rf"{journal.name}:2: "):
        run(Oracle(), out=tmp_path, config=CONFIG)


def test_another_version_starts_afresh(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may answer otherwise, and its report names it."""
    run(Oracle(), out=tmp_path, config=CONFIG)
    monkeypatch.setattr(hyperflax, "__version__", "0.0.0")
    run(oracle := Oracle(), out=tmp_path, config=CONFIG)
    assert len(oracle.batches) == 3


def test_another_config_metric_or_task_starts_afresh(tmp_path: pathlib.Path) -> None:
    run(Oracle(), out=tmp_path, config=CONFIG)
    oracle = Oracle()
    run(oracle, out=tmp_path, config={**CONFIG, "seed": 1})
    assert len(oracle.batches) == 3
    evaluate_conditions(TASKS, {"bare": bare}, "accuracy", out=tmp_path, config=CONFIG, progress=False)
    evaluate_conditions(TASKS[:-1], {"bare": bare}, "accuracy", out=tmp_path, config=CONFIG, progress=False)
    assert len(list(tmp_path.iterdir())) == 4
    # A further condition joins the file of the others.
    with_refined = {"bare": bare, "generated": Oracle(dies_at=0), "refined": Oracle()}
    table = evaluate_conditions(
        TASKS, with_refined, "exact_match", batch_size=3, out=tmp_path, config=CONFIG, progress=False
    )
    assert list(table.scores) == ["bare", "generated", "refined"]
    assert len(list(tmp_path.iterdir())) == 4


def test_progress_bar_counts_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_conditions(TASKS, {"bare": bare}, "exact_match")
    assert "7/7" in capsys.readouterr().err


def test_refusals(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="magic"):
        evaluate_conditions(TASKS, {"magic": bare}, "exact_match")
    with pytest.raises(ConfigError, match="at least one condition"):
        evaluate_conditions(TASKS, {}, "exact_match")
    with pytest.raises(ConfigError, match="`out` needs `config`"):
        run(Oracle(), out=tmp_path)
    with pytest.raises(DataError, match="at least one task"):
        evaluate_conditions([], {"bare": bare}, "exact_match")
    with pytest.raises(DataError, match="'add_0' is given twice"):
        evaluate_conditions([TASKS[0], TASKS[0]], {"bare": bare}, "exact_match")
    with pytest.raises(DataError, match="1 inputs for 0"):
        evaluate_conditions([EvaluationTask("t", ("x",), ())], {"bare": bare}, "exact_match")
    with pytest.raises(DataError, match=r"'generated': 2 lists .* batch of 3"):
        run(lambda batch: bare(batch)[:2] if len(batch) == 3 else bare(batch))


@pytest.mark.parametrize("kind", [AdapterError, DataError])
def test_what_goes_wrong_in_a_condition_is_told_with_its_place(kind: type[ValueError]) -> None:
    """As where refining diverges, and the model's logits are not finite."""

    def diverged(batch: Any) -> Any:
        raise kind("logits are not finite")

    with pytest.raises(kind, match=r"^condition 'generated', tasks 'add_0', 'add_1', 'add_2': logits are not finite"):
        run(diverged)
    with pytest.raises(DataError, match=r"'generated', task 'add_0': .*1 predictions for 2"):
        run(lambda batch: [["x"] for _ in batch])
