"""Was tuning worth it: means, paired gains and the verdict, in closed form."""

from __future__ import annotations

import pytest

from hyperflax.evaluation.worth import compare, table

BARE = [0.0] * 40


def test_a_sure_gain_is_worth_it_and_a_sure_loss_is_not():
    half = [0.0, 1.0] * 20
    found = compare({"bare": BARE, "generated": half, "tuned": [1.0] * 40}, against="generated")
    # Clopper and Pearson's bound for 40 of 40 is 0.025^(1/40), of the share that differs and of its better part alike.
    bound = 0.025 ** (1 / 40)
    assert found["gain"]["bare"] == {"mean": 1.0, "low": pytest.approx((2 * bound - 1) * bound), "high": 1.0}
    assert found["gain"]["generated"]["mean"] == found["scores"]["generated"]["mean"] == 0.5
    assert found["verdict"].startswith("worth it: +0.50 [0.")
    assert found["verdict"].endswith("over generated")
    lost = compare({"bare": BARE, "generated": half, "tuned": BARE}, against="generated")
    assert lost["verdict"].startswith("worse than before: -0.50 [-0.")


def test_gains_are_paired():
    """Equal means of opposite examples: the gain is zero and wide; of the same examples, zero and narrow."""
    first, second = [0.0, 1.0] * 20, [1.0, 0.0] * 20
    opposite = compare({"generated": first, "tuned": second}, against="generated")["gain"]["generated"]
    same = compare({"generated": first, "tuned": first}, against="generated")["gain"]["generated"]
    assert opposite["mean"] == same["mean"] == 0.0
    assert opposite["low"] < -0.1 < 0.1 < opposite["high"]
    # None of 40 differ: as many as 1 - 0.025^(1/40) = 9% of all examples may, either way.
    assert same["high"] == -same["low"] == pytest.approx(1 - 0.025 ** (1 / 40))


@pytest.mark.parametrize("score", [1.0, 0.4])
@pytest.mark.parametrize(("count", "sure"), [(2, False), (5, False), (6, True)])
def test_examples_that_agree_are_no_proof_when_few(score: float, count: int, sure: bool):
    """A sign test rejects at 5% from six differences on: 2 x 0.5^6 = 0.03, 2 x 0.5^5 = 0.06."""
    found = compare({"bare": [0.0] * count + [1.0], "tuned": [score] * count + [1.0]}, against="bare")
    assert found["verdict"].startswith("worth it" if sure else f"within what {count + 1} examples can show")
    if score == 1.0:
        gain = found["gain"]["bare"]
        assert gain["low"] < gain["mean"] < gain["high"]
        assert (gain["low"] > 0) is sure


def test_few_examples_can_show_little():
    found = compare({"bare": [0, 0, 0], "tuned": [0, 1, 0]}, against="bare")
    assert found["verdict"].startswith("within what 3 examples can show: +0.33 [-0.")
    assert [line.split()[0] for line in table(found).splitlines()[1:]] == ["bare", "tuned"]
    assert "+0.333" in table(found)


def test_one_example_shows_nothing():
    assert compare({"bare": [0], "tuned": [1]}, against="bare")["gain"]["bare"] == {
        "mean": 1.0,
        "low": pytest.approx(2 * 0.025 - 1),
        "high": pytest.approx(1.0),
    }
