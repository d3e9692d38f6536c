"""T0's split of P3 by names, against T0's own lists."""

from __future__ import annotations

import csv
import json
import pathlib

from hyperflax_tasks import p3_split


def t0_data_sets(data_dir: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
    """(name, row) of every data set of T0's list."""
    with open(data_dir / "p3" / "t0_datasets.csv", newline="") as lines:
        return [(f"{row['HF_name']}_{row['subset']}".strip("_"), row) for row in csv.DictReader(lines)]


def test_templates_are_those_of_t0s_list(data_dir: pathlib.Path) -> None:
    listed = json.loads((data_dir / "p3" / "t0_eval_template_list.json").read_text())
    names = {p3_split.canonical(name): sorted(map(p3_split.canonical, templates)) for name, templates in listed.items()}
    names |= {f"anli_dev_r{number}": names["anli"] for number in (1, 2, 3)}
    del names["anli"]
    assert {name: sorted(found.templates) for name, found in p3_split.HELD_OUT.items()} == names


def test_all_of_t0s_data_sets_are_trained_on_and_none_of_t0_plus(data_dir: pathlib.Path) -> None:
    listed = t0_data_sets(data_dir)
    trained = [name for name, _ in listed if p3_split.is_trained_on(f"{name}_template")]
    assert trained == [name for name, row in listed if row["do_train"] == "BASE"]
