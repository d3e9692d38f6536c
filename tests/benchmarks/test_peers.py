"""The comparison with peers: its arithmetic, its rule that only equals are compared, one case run small."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import subprocess

import numpy as np
import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import docs
from benchmarks.peers.agreement import agreement
from benchmarks.peers.case import SMALL, Case, Entry, Ratio, quick
from benchmarks.peers.cases import CASES
from benchmarks.peers.materials import START, adapter, base_params, spec_of
from benchmarks.peers.measure import Workers, measure, steps
from benchmarks.peers.results import FOLDER, Figure, crossing, current, ratio_figure, rendered, stale, write_result
from hyperflax import trees
from hyperflax.errors import HyperflaxError
from hyperflax.json_files import read_json, write_json


def timed(**seconds: list[float]) -> dict:
    works = {"a": 6, "b": 2}
    return {
        name: {"side": "hyperflax", "seconds": values, "work": works.get(name, 1), "unit": "flop"}
        for name, values in seconds.items()
    }


def test_ratios_are_taken_round_by_round():
    result = {"entries": timed(a=[1.0, 2.0, 5.0], b=[3.0, 4.0, 5.0])}
    # 3, 2, 1: not the ratio of the medians, which is 2 as well, nor of the sums.
    assert ratio_figure(Ratio("", "b", "a"), result) == Figure(2.0, 1.0, 3.0)
    # Six operations in the seconds of a, two in those of b: three times the ratio of seconds.
    assert ratio_figure(Ratio("", "b", "a", rates=True), result) == Figure(6.0, 3.0, 9.0)
    assert ratio_figure(Ratio("", "b", "absent"), result) is None


def test_where_one_curve_crosses_another():
    # t(x) = x against a constant 10, in logarithms both are straight lines.
    assert crossing({1: 1.0, 4: 4.0, 25: 25.0}, dict.fromkeys((1, 4, 25), 10.0)) == pytest.approx(10.0)
    assert crossing({2: 3.0, 4: 5.0}, {2: 1.0, 4: 1.0}) == "before 2"
    assert crossing({2: 3.0, 4: 5.0}, {2: 9.0, 4: 9.0}) == "not by 4"


def test_the_work_of_t5_1_1_small():
    """6 N tokens by hand: parameters of the products 8 x 2.36 M in the encoder, 8 x 3.15 M and the logits beside."""
    entry = Entry("hyperflax", "train_full", rows=1, source=2, target=1)
    attention, mlp = 4 * 512 * 384, 3 * 512 * 1024
    # The decoder's keys and values of the encoded tokens are products over two tokens, its other ones over one.
    products = 2 * 8 * (attention + mlp) + 8 * (attention + 2 * 512 * 384 + mlp) + 2 * 8 * 2 * 512 * 384 + 512 * 32128
    mixing = 2 * 384 * 8 * (2 * 2 + 1 * 1 + 1 * 2)
    assert entry.work(SMALL) == (6 * (products + mixing), "flop")
    assert Entry("hyperflax", "decode", rows=3, target=7).work(SMALL) == (21, "token")


def test_every_case_names_its_own_entries():
    for name, case in CASES.items():
        pairs = [(ratio.over, ratio.under) for ratio in case.ratios]
        named = {*sum(pairs, ()), *(entry for points in case.curves.values() for entry in points.values())}
        assert named | set(case.most_seconds) <= set(case.entries), name
        assert set(case.crossing or ()) <= set(case.curves), name


def test_the_hash_is_of_what_decides_the_seconds():
    case = CASES["train_lora"]
    assert dataclasses.replace(case, says="other words").digest() == case.digest()
    assert dataclasses.replace(case, rounds=1).digest() != case.digest()
    assert len({case.digest() for case in CASES.values()}) == len(CASES)


@pytest.mark.parametrize(
    ("program", "ours", "theirs", "found"),
    [
        ("train_lora", [2.0, 1.0], [2.0, 1.0005], {"losses": [2.0, 1.0], "loss_difference": 5e-4}),
        ("train_lora", [2.0, 1.0], [2.0, 1.1], None),
        ("decode", [[1, 2, 3, 4, 5]] * 2, [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]], {"tokens_equal": 0.9}),
        ("decode", [[1, 2, 3]], [[1, 7, 8]], None),
        ("decode", [[1, 2, 3]], [[1, 2]], None),
    ],
)
def test_sides_that_compute_something_else_are_refused(program, ours, theirs, found):
    entries = {"a": Entry("hyperflax", program), "b": Entry("transformers", program), "c": Entry("hyperflax", "start")}
    made = {"a": ours, "b": theirs, "c": None}
    if found is None:
        with pytest.raises(HyperflaxError, match=r"^b"):
            agreement(entries, made)
    else:
        assert agreement(entries, made) == [{"entries": ["a", "b"], **found}]


def test_the_start_of_training_changes_nothing_and_the_base_has_its_usual_size():
    entry, shape = Entry("hyperflax", "train_lora", adapter="lora8", layers=1), quick(CASES["train_lora"]).shape
    for leaf in spec_of(entry, shape).leaves:
        assert leaf.scale == 1.0  # what trains is what PEFT starts from
        start, other = (trees.flatten(adapter(entry, shape, number))[leaf.path] for number in (START, 0))
        assert np.any(start) == (leaf.name == "a")
        assert np.all(np.isfinite(other))
        assert np.any(other)
    params = trees.flatten(base_params(entry.t5(SMALL)))
    assert params["encoder/layers_0/mlp/wi_0/kernel"].std() == pytest.approx(1 / math.sqrt(512), rel=0.01)
    assert params["encoder/layers_0/attention/query/kernel"].std() == pytest.approx(1 / math.sqrt(512 * 64), rel=0.01)


def test_a_case_run_small(tmp_path: pathlib.Path):
    """Decoding, bare and with an adapter in every row: processes, turns, tokens, results."""
    full = CASES["decode_switching"]
    case = quick(dataclasses.replace(full, entries={name: full.entries[name] for name in ("bare", "resident")}))
    done: list[str] = []
    with Workers(tmp_path) as workers:
        measured = measure(case, ("hyperflax",), workers, done.append)
        with pytest.raises(HyperflaxError, match=r"hyperflax, unknown: the process ended\n(.*\n)*.*KeyError"):
            workers.ask("hyperflax", do="time", name="unknown")
    assert done == ["bare", "resident"] * 2 + ["resident", "bare"]
    assert len(done) == steps(case, ("hyperflax",))
    for entry in measured["entries"].values():
        assert len(entry["seconds"]) == 2
        assert min(entry["seconds"]) > 0
        assert (entry["work"], entry["unit"]) == (12, "token")


def test_what_is_not_measured_again_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    measured = []
    monkeypatch.setattr(command, "current", lambda folder, name, sides: name == "start")
    monkeypatch.setattr(command, "run_cases", lambda names, sides, small: measured.append(names) or [])
    monkeypatch.setattr(command, "write_docs", lambda: None)
    assert command.main(["--only", "start", "--only", "answer"]) == 0
    assert f"start: not measured again, {FOLDER / 'start.json'} is current" in capsys.readouterr().err
    assert command.main(["--only", "start", "--quick"]) == 0
    assert measured == [["answer"], ["start"]]


def test_no_result_is_stale():
    assert not stale(FOLDER)


def test_a_stale_result_is_found(tmp_path: pathlib.Path):
    entries = timed(**{name: [2.0, 3.0, 4.0] for name in CASES["train_lora"].entries})
    write_result(tmp_path, "train_lora", {"device": "x", "entries": entries, "agreement": []})
    path = tmp_path / "train_lora.json"
    assert not stale(tmp_path)
    assert current(tmp_path, "train_lora", ("hyperflax", "transformers"))
    result = read_json(path)
    write_json(path, {**result, "entries": {"hyperflax": entries["hyperflax"]}})
    assert not current(tmp_path, "train_lora", ("hyperflax", "transformers")), "a side is missing"
    write_json(path, {**result, "hash": "0" * 16})
    write_json(tmp_path / "other.json", {"hash": "x"})
    first, second = stale(tmp_path)
    assert "other.json: no case has this name" in first
    assert "stale, expected the hash" in second


def test_a_result_names_the_commit_of_t5x(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    checkout = tmp_path / "t5x"
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for name, expected in ((str(checkout), commit), (str(tmp_path), "unknown"), ("", None)):
        monkeypatch.setenv("HYPERFLAX_T5X", name)
        write_result(tmp_path, "train_lora", {"device": "x", "entries": {}, "agreement": []})
        assert read_json(tmp_path / "train_lora.json")["versions"].get("t5x") == expected


def test_the_docs_show_the_results():
    assert docs.shown() == docs.section()


def test_the_page_is_written_from_results(tmp_path: pathlib.Path):
    names = ("train_lora", "answer")
    for name in names:
        entries = timed(**{entry: [2.0, 3.0, 4.0] for entry in CASES[name].entries})
        agreed = [{"entries": ["hyperflax", "transformers"], "loss_difference": 2e-7}] if name == "train_lora" else []
        write_result(tmp_path, name, {"device": "x", "entries": entries, "agreement": agreed})
    page = tmp_path / "peers.md"
    page.write_text(f"# A page\n\n{docs.BEGIN}old\n{docs.END}\nMore.\n", "utf-8")
    docs.write_docs(tmp_path, page)
    written = page.read_text("utf-8")
    assert written.startswith("# A page\n")
    assert written.endswith("\nMore.\n")
    assert docs.shown(page) == docs.section(tmp_path)
    assert "| hyperflax is faster than transformers | 1.00 | 1.00 to 1.00 | at least 1.5, missed |" in written
    assert "hyperflax and transformers: losses differ by 2e-07." in written
    assert "old" not in written
    assert (tmp_path / "peers.svg").read_text("utf-8").count("train_lora: ") > 0


def test_a_ratio_that_was_not_run_says_so():
    case: Case = CASES["train_lora"]
    result = {"entries": timed(hyperflax=[1.0]), "agreement": [], "device": "x", "versions": {}}
    assert f"| {case.ratios[0].says} | not run |  | at least 1.5 |" in rendered({"train_lora": result})


def test_seconds_have_targets_too():
    case: Case = CASES["start"]
    cold, warm = case.most_seconds
    entries = timed(**{name: [1.0] for name in case.entries} | {cold: [5.0, 7.0, 6.5], warm: [2.0, 3.5, 2.5]})
    lines = rendered({"start": {"entries": entries, "agreement": [], "device": "x", "versions": {}}}).splitlines()
    assert f"| {cold} | 6.500 | 5.000 to 7.000 | at most 6, missed |" in lines
    assert f"| {warm} | 2.500 | 2.000 to 3.500 | at most 3 |" in lines
    assert "| | seconds, median | lowest to highest | target |" in lines
