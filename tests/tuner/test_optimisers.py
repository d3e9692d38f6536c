"""Histories and optimisers: one suite for every optimiser, and what each of them is to do."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.errors import ConfigError
from hyperflax.tuner.acquisition import expected_improvement, per_second
from hyperflax.tuner.history import History, Incumbent, Trial
from hyperflax.tuner.optimisers import GreyBox, Only, RandomSearch, SuccessiveHalving


class Known:
    """A surrogate that knows the curves: pipeline p scores p / 10 + fidelity / 100, and costs p + 1 seconds a part."""

    def predict(self, history, trials, mode):
        del history, mode
        mean = np.array([trial.pipeline / 10 + trial.fidelity / 100 for trial in trials])
        return mean, np.full(len(trials), 1e-3), np.array([trial.pipeline + 1.0 for trial in trials])


OPTIMISERS = {
    "only": Only(1),
    "random": RandomSearch(),
    "halving": SuccessiveHalving(bracket=4),
    "halving by 3": SuccessiveHalving(bracket=9, eta=3),
    "grey box": GreyBox(Known()),
    "grey box refitted": GreyBox(Known(), mode="refit"),
}


def score(trial: Trial) -> float:
    return trial.pipeline / 10 + trial.fidelity / 100


def play(optimiser, history, workers=1, fails=()):
    """All trials in the order in which they were asked for, with so many under way at once."""
    asked = []
    while True:
        while len(history.pending) < workers and (trial := optimiser.choose(history)) is not None:
            history = history.asked(trial)
            asked.append(trial)
        if not history.pending:
            return history, asked
        trial = history.pending[0]
        if trial.pipeline in fails:
            history = history.told(trial, seconds=1.0, status="out_of_memory")
        else:
            history = history.told(trial, seconds=1.0, score=score(trial))


@pytest.mark.parametrize("name", OPTIMISERS)
@settings(deadline=None, max_examples=15)
@given(size=st.integers(2, 9), fidelities=st.integers(1, 8), seed=st.integers(0, 99), workers=st.integers(1, 4))
def test_every_trial_is_the_next_part_of_its_pipeline_and_none_comes_twice(name, size, fidelities, seed, workers):
    history, asked = play(OPTIMISERS[name], History(size=size, fidelities=fidelities, seed=seed), workers)
    assert len(set(asked)) == len(asked) == len(history.observations)
    for pipeline in range(size):
        parts = [trial.fidelity for trial in asked if trial.pipeline == pipeline]
        assert parts == list(range(1, len(parts) + 1))
    assert history.incumbent.score == max(score(trial) for trial in asked)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_choice_depends_on_the_history_alone_and_survives_json(name):
    optimiser, history = OPTIMISERS[name], History(size=5, fidelities=4, seed=3)
    for _ in range(6):
        again = History.from_json(json.loads(json.dumps(history.to_json())), "here")
        assert again == history
        trial = optimiser.choose(history)
        assert optimiser.choose(again) == trial
        if trial is None:
            break
        history = history.asked(trial).told(trial, seconds=1.0, score=score(trial))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_pipeline_that_failed_is_not_asked_for_again(name):
    history, asked = play(OPTIMISERS[name], History(size=5, fidelities=4), fails=(1, 3))
    for failed in (1, 3):
        assert sum(trial.pipeline == failed for trial in asked) <= 1
    assert all(seen.score is None for seen in history.observations if seen.pipeline in (1, 3))
    assert history.spent == len(asked)


def test_random_search_runs_everything_and_one_after_the_other():
    _, asked = play(RandomSearch(), History(size=6, fidelities=3, seed=1))
    assert len(asked) == 18
    order = [trial.pipeline for trial in asked[::3]]
    assert [trial.pipeline for trial in asked] == [number for number in order for _ in range(3)]
    assert play(RandomSearch(), History(size=6, fidelities=3, seed=2))[1] != asked


def test_successive_halving_by_hand():
    """Eight begin; the best four go on to part 2, the best two to part 4, the best one to part 8."""
    history, asked = play(SuccessiveHalving(bracket=8), History(size=8, fidelities=8))
    reached = {pipeline: len(history.curve(pipeline)) for pipeline in range(8)}
    assert reached == {0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8}
    assert [trial.fidelity for trial in asked] == [1] * 8 + [2] * 4 + [3, 4, 3, 4] + [5, 6, 7, 8]


def test_the_grey_box_takes_the_largest_improvement_per_second():
    """Nothing is known: pipeline p promises p / 10 + .01 for p + 1 seconds, most per second at p = 9."""
    history = History(size=10, fidelities=2)
    promise = np.array([(p / 10 + 0.01) / (p + 1) for p in range(10)])
    assert GreyBox(Known()).choose(history) == Trial(int(np.argmax(promise)), 1) == Trial(9, 1)
    history = history.asked(Trial(9, 1)).told(Trial(9, 1), seconds=1.0, score=0.91)
    assert GreyBox(Known()).choose(history) == Trial(9, 2)
    # What was seen is better than all that is left: nothing is worth doing.
    history = history.asked(Trial(9, 2)).told(Trial(9, 2), seconds=1.0, score=5.0)
    assert GreyBox(Known(), enough=1e-9).choose(history) is None


def test_the_grey_box_begins_where_no_score_reaches_zero():
    """As of a table of negative losses; what is asked for first is most per second above the lowest score expected."""

    class Lower(Known):
        def predict(self, history, trials, mode):
            mean, std, seconds = super().predict(history, trials, mode)
            return mean - 100.0, std, seconds

    history, optimiser = History(size=10, fidelities=2), GreyBox(Lower())
    assert optimiser.choose(history) == Trial(9, 1)
    failed = history.asked(Trial(9, 1)).told(Trial(9, 1), seconds=1.0, status="failed")
    assert optimiser.choose(failed) == Trial(8, 1)
    history = history.asked(Trial(9, 1)).told(Trial(9, 1), seconds=1.0, score=-99.09)
    assert optimiser.choose(history) == Trial(9, 2)


def test_expected_improvement_against_a_million_draws():
    rng = np.random.default_rng(0)
    for mean, std, best, xi in ((0.3, 0.2, 0.4, 0.0), (0.5, 0.1, 0.2, 0.05), (0.1, 0.3, 0.6, 0.1)):
        draws = np.maximum(rng.normal(mean, std, 1_000_000) - best - xi, 0.0)
        (value,) = expected_improvement(np.array([mean]), np.array([std]), best, xi)
        assert value == pytest.approx(draws.mean(), abs=4 * draws.std() / 1000)


def test_expected_improvement_by_quadrature_where_hardly_anything_is_promised():
    """The integral of u phi(u - z) over u > 0, phi(z) taken out of it: u exp(u z - u^2 / 2)."""
    z, u = np.linspace(-30.0, -4.0, 105), np.linspace(0.0, 5.0, 200_001)
    inner = np.array([np.trapezoid(u * np.exp(u * one - u**2 / 2), u) for one in z])
    expected = inner * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(expected_improvement(z, np.ones(len(z)), 0.0), expected, rtol=1e-6)


def test_expected_improvement_of_what_is_known_and_of_nonsense():
    np.testing.assert_allclose(expected_improvement(np.array([0.2, 0.7]), np.zeros(2), 0.5), [0, 0.2])
    with pytest.raises(ConfigError, match="std of 0 or more"):
        expected_improvement(np.array([0.5]), np.array([-1.0]), 0.5)
    with pytest.raises(ConfigError, match="positive seconds, got 0"):
        per_second(np.ones(2), np.array([1.0, 0.0]))


@settings(deadline=None)
@given(mean=st.floats(-2, 2), std=st.floats(0, 2), best=st.floats(-2, 2), xi=st.floats(0, 1), more=st.floats(0, 1))
def test_expected_improvement_falls_with_xi_and_is_never_negative(mean, std, best, xi, more):
    small, large = (
        expected_improvement(np.array([mean]), np.array([std]), best, value)[0] for value in (xi, xi + more)
    )
    assert 0 <= large <= small + 1e-12


def test_the_incumbent_is_the_earliest_of_the_best():
    history = History(size=3, fidelities=2)
    assert history.incumbent is None
    for trial in (Trial(2, 1), Trial(0, 1), Trial(1, 1)):
        history = history.asked(trial).told(trial, seconds=1.0, score={2: 0.4, 0: 0.5, 1: 0.5}[trial.pipeline])
    assert history.incumbent == Incumbent(0, 1, 0.5)
    trial = Trial(1, 2)
    for start, best in ((0.5, Incumbent(0, 1, 0.5)), (0.75, Incumbent(1, 0, 0.75))):
        begun = history.asked(trial).told(trial, seconds=1.0, score=0.25, start=start)
        assert begun.incumbent == best
        assert begun.curve(1) == (0.5, 0.25)


def test_what_was_under_way_is_asked_for_again_after_a_restart():
    history = History(size=2, fidelities=2).asked(Trial(1, 1))
    assert history.open() == [0]
    assert history.restarted().open() == [0, 1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"size": 0}, "at least 1"),
        ({"observations": [{"pipeline": 0, "fidelity": 2, "score": 0.5, "seconds": 1.0}]}, "no next part"),
        ({"observations": [{"pipeline": 9, "fidelity": 1, "score": 0.5, "seconds": 1.0}]}, "no next part"),
        ({"observations": [{"pipeline": 0, "fidelity": 1, "score": None, "seconds": 1.0}]}, "a score belongs to"),
        ({"luck": 1}, "has no field 'luck'"),
        ({"size": "two"}, "Expected `int`"),
    ],
)
def test_a_broken_history_is_refused(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        History.from_json({**History(size=2).to_json(), **change}, "tune.json")


def test_what_nobody_asked_for_cannot_be_told():
    history = History(size=2, fidelities=2)
    with pytest.raises(ConfigError, match="nobody asked"):
        history.told(Trial(0, 1), seconds=1.0, score=1.0)
    with pytest.raises(ConfigError, match="cannot be asked for now"):
        history.asked(Trial(0, 2))
    with pytest.raises(ConfigError, match="finite score, got nan"):
        history.asked(Trial(0, 1)).told(Trial(0, 1), seconds=1.0, score=float("nan"))


def test_a_history_is_never_changed():
    history = History(size=2)
    before = dataclasses.replace(history)
    history.asked(Trial(0, 1)).told(Trial(0, 1), seconds=1.0, score=1.0)
    assert history == before
