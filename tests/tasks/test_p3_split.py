"""T0's split of P3 by names, against T0's own lists."""

from __future__ import annotations

import csv
import json
import pathlib

import pytest

from hyperflax_tasks import p3, p3_split


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


def test_mixing_rates_are_made_of_t0s_list(data_dir: pathlib.Path) -> None:
    sizes = {
        p3_split.canonical(n): int(row["train_size"]) for n, row in t0_data_sets(data_dir) if row["do_train"] == "BASE"
    }
    assert {name: size for name, size in p3_split.TRAINED.items() if name != "commonsense_qa"} == sizes
    assert p3_split.TRAINED["commonsense_qa"] == sizes["cos_e_v1_11"]


@pytest.mark.parametrize(
    ("prompt_task", "rate"),
    [
        ("imdb_Reviewer_Enjoyment", 25_000),
        ("glue_qqp_answer", 363_846),  # below the cap: no prompt's rate is shared
        ("cnn_dailymail_3.0.0_news_stock", 287_113),  # P3's own name and that of the data at hand
        ("cnn_dailymail_3_0_0_news_stock", 287_113),
        ("cos_e_v1.11_rationale", 9_741),
        ("dbpedia_14_given_a_choice_of_categories_", 125_000),
        ("yelp_review_full_this_place", 71_428),
        ("imdb", None),  # no template
        ("imdb2_Reviewer_Enjoyment", None),
        ("super_glue_boolq_GPT_3_Style", None),  # T0++'s
    ],
)
def test_a_prompt_tasks_rate(prompt_task: str, rate: int | None) -> None:
    assert p3_split.mixing_rate(prompt_task) == rate


def test_a_large_data_sets_prompts_share_the_cap(materialised: pathlib.Path) -> None:
    """All prompts of T0's large data sets are in the reference data, and T0 takes 500,000 // prompts for each."""
    folders = [path.name for path in p3.prompt_tasks(materialised / "p3", "train")]
    assert all(p3_split.mixing_rate(name) for name in folders)
    large = [name for name, size in p3_split.TRAINED.items() if size > 500_000]
    assert large == ["amazon_polarity", "dbpedia_14", "gigaword", "wiki_bio", "yelp_review_full"]
    for data_set in large:
        prompts = [name for name in folders if name.startswith(f"{data_set}_")]
        assert {p3_split.mixing_rate(name) for name in prompts} == {500_000 // len(prompts)}


def test_a_name_is_of_one_data_set() -> None:
    for name in p3_split.TRAINED:
        assert [other for other in p3_split.TRAINED if f"{name}_".startswith(f"{other}_")] == [name]
