"""Was tuning worth it: means, paired gains and the verdict, in closed form."""

from __future__ import annotations

import pytest

from hyperflax.evaluation.worth import compare, table

BARE = [0.0] * 40


def test_a_sure_gain_is_worth_it_and_a_sure_loss_is_not():
    half = [0.0, 1.0] * 20
    found = compare({"bare": BARE, "generated": half, "tuned": [1.0] * 40}, against="generated")
    assert found["gain"]["bare"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["gain"]["generated"]["mean"] == found["scores"]["generated"]["mean"] == 0.5
    assert found["verdict"].startswith("worth it: +0.50 [0.")
    assert found["verdict"].endswith("over generated")
    lost = compare({"bare": BARE, "generated": half, "tuned": BARE}, against="generated")
    assert lost["verdict"].startswith("worse than before: -0.50 [-0.")


def test_gains_are_paired():
    """Equal means of opposite examples: the gain is zero and wide; of the same examples, zero and sure."""
    first, second = [0.0, 1.0] * 20, [1.0, 0.0] * 20
    opposite = compare({"generated": first, "tuned": second}, against="generated")["gain"]["generated"]
    same = compare({"generated": first, "tuned": first}, against="generated")["gain"]["generated"]
    assert opposite["mean"] == same["mean"] == 0.0
    assert opposite["low"] < -0.1 < 0.1 < opposite["high"]
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_few_examples_can_show_little():
    found = compare({"bare": [0, 0, 0], "tuned": [0, 1, 0]}, against="bare")
    assert found["verdict"].startswith("within what 3 examples can show: +0.33 [0.00, ")
    assert [line.split()[0] for line in table(found).splitlines()[1:]] == ["bare", "tuned"]
    assert "+0.333" in table(found)


def test_one_example_shows_nothing():
    assert compare({"bare": [0], "tuned": [1]}, against="bare")["gain"]["bare"] == {
        "mean": 1.0,
        "low": pytest.approx(-1.0),
        "high": pytest.approx(1.0),
    }
