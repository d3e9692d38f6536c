"""An adapter's own examples say what to expect: what is asked is never shown, and the advice follows the scores."""

from __future__ import annotations

import io
import json
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from hyperflax.cli.main import main
from hyperflax.data.jsonl import Line
from hyperflax.data.vocabularies import SentencePiece
from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.evaluation import estimate as module
from hyperflax.evaluation.estimate import Estimate, estimate
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax.hypermodel import Hypermodel
from tests.evaluation.micro import hypermodel

PAIRS = [("ab", "AB"), ("cd", "CD"), ("ef", "EF"), ("gh", "GH"), ("ij", "IJ")]


def test_each_example_is_asked_of_an_adapter_made_from_the_others() -> None:
    model = hypermodel()
    found = estimate(model, PAIRS, refine_steps=2)
    assert sorted(found.asked) == PAIRS
    for number, pair in enumerate(found.asked):
        rest = [other for other in PAIRS if other != pair]
        assert found.predictions["generated"][number] == model.predict([pair[0]], model.adapt(rest))[0]
        refined = model.adapt(rest, refine_steps=2)
        assert found.predictions["refined"][number] == model.predict([pair[0]], refined)[0]
        assert found.predictions["bare"][number] == model.predict([pair[0]])[0]
    assert len(set(found.predictions["generated"])) > 1, "the adapters do nothing, and the test shows nothing"


def test_examples_are_taken_as_adapt_takes_them() -> None:
    told = estimate(hypermodel(), PAIRS).to_json()
    mappings = ({"input": x, "target": y} for x, y in PAIRS)
    lines = [Line(f"mine.jsonl:{number}", *pair) for number, pair in enumerate(PAIRS)]
    assert estimate(hypermodel(), mappings).to_json() == told
    assert estimate(hypermodel(), lines).to_json() == told
    with pytest.raises(DataError, match=r"^example 1: expected keys 'input' and 'target', got"):
        estimate(hypermodel(), [PAIRS[0], {"input": "a", "output": "b"}])


def test_a_target_is_asked_for_as_the_vocabulary_writes_it(
    data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5's writes no double space and no space at an end; an adapter that is always right would score nothing."""
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")
    config = types.SimpleNamespace(vocabulary=vocabulary, episodes=hypermodel().config.episodes)

    def right(tasks: Sequence[EvaluationTask]) -> list[list[str]]:
        return [[vocabulary.decode(vocabulary.encode(target)) for (target,) in task.references] for task in tasks]

    conditions = types.SimpleNamespace(pick=lambda *names: dict.fromkeys(names, right))
    monkeypatch.setattr(module, "Conditions", lambda *_, **__: conditions)
    pairs = [("a", "Paris "), ("b", "New  York"), ("c", "{x}")]
    found = estimate(types.SimpleNamespace(config=config), pairs)
    assert found.asked == (("a", "Paris"), ("b", "New York"), ("c", "{x}"))
    assert found.scores["generated"] == [1.0, 1.0, 0.0], "no model of this vocabulary can write a brace"


def test_with_many_examples_a_part_is_left_out_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDS", 2)
    model = hypermodel()
    found = estimate(model, PAIRS, refine_steps=1)
    assert found.asked == (*PAIRS[::2], *PAIRS[1::2])
    assert found.predictions["generated"][:3] == model.predict(["ab", "ef", "ij"], model.adapt(PAIRS[1::2]))
    assert found.predictions["generated"][3:] == model.predict(["cd", "gh"], model.adapt(PAIRS[::2]))


def test_an_adapter_that_diverges_is_named_and_costs_the_estimate_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverged(self: Hypermodel, adapters: Any, *_: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf * np.nan, adapters), None

    monkeypatch.setattr(Hypermodel, "refine", diverged)
    with pytest.raises(AdapterError, match=r"^condition 'refined': decode: .* not finite with these adapters"):
        estimate(hypermodel(), PAIRS)
    hypermodel().save(tmp_path / "model")
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(json.dumps({"input": text, "target": target}) + "\n" for text, target in PAIRS))
    command = ["adapt", "--model", str(tmp_path / "model"), "--examples", str(examples)]
    assert main([*command, "--out", str(tmp_path / "adapter")]) == 0
    told = capsys.readouterr()
    assert "\nno estimate: condition 'refined': decode: the base model's logits are not finite" in told.out
    assert (tmp_path / "adapter" / "adapter.json").is_file()
    # Where the adapter itself diverged, there is none to use.
    assert main([*command, "--out", str(tmp_path / "refined"), "--refine", "3"]) == 2
    assert "the adapter is not finite after 3 steps of refining" in capsys.readouterr().err
    assert not (tmp_path / "refined").exists()


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, progress, shown in ((True, True, True), (False, True, False), (True, False, False)):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", screen)
        estimate(hypermodel(), PAIRS, progress=progress)
        assert ("estimate:" in screen.getvalue()) == shown


def test_in_context_stand_as_many_of_the_rest_as_fit() -> None:
    model, parts = hypermodel(), [[0], [3]]
    folds = module._folds(model, PAIRS, PAIRS, parts, None, most=9)  # four tokens each
    shown = [[model.config.vocabulary.decode(e.inputs) for e in tokens.support] for tokens in folds.tokens.values()]
    assert shown == [["cd", "ef"], ["ab", "cd"]]
    folds = module._folds(model, PAIRS, PAIRS, parts, None, most=1)
    assert [len(tokens.support) for tokens in folds.tokens.values()] == [1, 1]


def test_in_context_alone_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate(hypermodel(), PAIRS, refine_steps=1).predictions
    monkeypatch.setattr(module, "CONTEXT", 1)
    found = estimate(hypermodel(), PAIRS, refine_steps=1).predictions
    assert [name for name in whole if found[name] != whole[name]] == ["in_context"]


def test_scores_are_those_of_the_predictions() -> None:
    found = estimate(hypermodel(), [("a", "b"), ("c", "d")], metric="rouge_1", refine_steps=1)
    assert "mismatched" not in found.scores, "two examples leave one, and one has no other's target"
    shown = found.to_json()
    assert shown["metric"] == "rouge_1"
    assert [row["input"] for row in shown["examples"]] == ["a", "c"]
    for name, scores in found.scores.items():
        expected = [float(p.strip() == t) for p, (_, t) in zip(found.predictions[name], found.asked, strict=True)]
        assert scores == expected


def test_targets_are_mismatched_without_exception() -> None:
    shown = module._mismatch(PAIRS, seed=3)
    assert [text for text, _ in shown] == [text for text, _ in PAIRS]
    assert sorted(target for _, target in shown) == [target for _, target in PAIRS]
    assert not set(shown) & set(PAIRS)


def test_pairs_that_fit_need_not_fit_mixed() -> None:
    """A long input meets the target of another one, which was short itself."""
    model = hypermodel()
    room = model.config.episodes.support_length - 3  # two sentinels, end of sequence
    long = min(room - 2, model.config.episodes.inputs_length - 1)
    pairs = [("a" * long, "b" * (room - long)), ("c", "d" * (room - 1)), ("e" * long, "f" * (room - long))]
    assert len(estimate(model, pairs, refine_steps=1).predictions["mismatched"]) == 3


def test_a_metric_that_is_no_mean_over_examples_is_refused() -> None:
    told = r"^estimate: metric: expected one that scores an example alone \(exact_match, .*\), got 'macro_f1'"
    with pytest.raises(ConfigError, match=told):
        estimate(hypermodel(), PAIRS, metric="macro_f1")


def test_one_example_is_too_few() -> None:
    with pytest.raises(DataError, match="at least 2 examples, to leave one out, got 1"):
        estimate(hypermodel(), PAIRS[:1])


def test_what_no_row_holds_is_counted_and_said() -> None:
    """The micro model's inputs have 16 tokens, end of sequence included; an answer 8, which need not hold the end."""
    pairs = [("a" * 15, "b" * 8), ("c" * 16, "d"), ("e", "f" * 9), ("g", "h"), ("i" * 18, "j" * 10)]
    found = estimate(hypermodel(), pairs, refine_steps=1)
    assert (found.cut_inputs, found.long_targets) == (2, 2)
    told = "; 2 of 5 inputs are cut to be asked; 2 of 5 targets are longer than an answer can be"
    assert found.reason.endswith(told)
    assert found.to_json().items() >= {"cut_inputs": 2, "long_targets": 2, "reason": found.reason}.items()
    whole = estimate(hypermodel(), PAIRS, refine_steps=1)
    assert (whole.cut_inputs, whole.long_targets) == (0, 0)
    assert "cut" not in whole.reason
    assert "longer" not in whole.reason


def known(n: int = 8, made: str = "generated", long: int = 0, **right: int) -> Estimate:
    """So many of n examples right, by condition; of an adapter that was refined or not; so many targets too long."""
    counts = {"bare": 0, "in_context": 0, "generated": 0, "refined": 0, "mismatched": 0} | right
    scores = {name: [1.0] * count + [0.0] * (n - count) for name, count in counts.items()}
    pairs = tuple((str(i), str(i)) for i in range(n))
    return Estimate("exact_match", 20, made, pairs, {name: [""] * n for name in counts}, scores, 0, long)


@pytest.mark.parametrize(
    ("found", "advice", "reason"),
    [
        (known(generated=7, refined=7), "use", "generated adapters score 0.88 [0.53, 0.98]"),
        (known(generated=7, refined=7, in_context=2), "use", "; as many of the same examples as fit the base model's "),
        (known(generated=6, refined=8), "refine", "refined adapters score 1.00 [0.68, 1.00]"),
        (known(generated=6, refined=8, made="refined"), "use", "refined adapters score 1.00 [0.68, 1.00]"),
        (known(generated=8, refined=6, made="refined"), "use", "more than refined ones: use one without refining"),
        (known(generated=5, refined=4), "give more examples", "not yet 0.75"),
        (known(20, generated=10, refined=12), "fine-tune", "not yet 0.75"),
        (known(), "give more examples", "no gain"),
        (known(20), "fine-tune", "no gain"),
        # No number of examples makes an answer longer; where the others could still do, more of them may help.
        (known(long=8), "give shorter examples", "no gain from them; 8 of 8 targets are longer than an answer can be"),
        (known(20, generated=10, long=6), "give shorter examples", "not yet 0.75; 6 of 20 targets are longer"),
        (known(20, generated=10, long=5), "fine-tune", "not yet 0.75; 5 of 20 targets are longer"),
        (known(generated=5, long=2), "give more examples", "not yet 0.75; 2 of 8 targets are longer"),
        # The bare model is as good, or targets of other inputs do as well: nothing was learnt from the examples.
        (known(generated=7, refined=7, bare=6), "give more examples", "no gain"),
        (known(generated=7, refined=7, mismatched=7), "give more examples", "no gain"),
        (known(generated=7, refined=7, mismatched=6), "use", "on examples left out"),
    ],
)
def test_the_advice_follows_the_scores(found: Estimate, advice: str, reason: str) -> None:
    assert found.advice == advice
    assert reason in found.reason
    assert found.table().endswith(f"{advice}: {found.reason}")


def test_wilsons_interval() -> None:
    """Wilson 1927 for 6 of 8, computed by hand: centre (p + z^2/2n)/(1 + z^2/n), z = 1.959964."""
    found = known(generated=6).interval("generated")
    assert (found.mean, round(found.low, 4), round(found.high, 4)) == (0.75, 0.4093, 0.9285)


def test_scores_between_right_and_wrong_are_resampled() -> None:
    found = Estimate("rouge_l", 20, "generated", (("a", "b"),) * 3, {}, {"generated": [0.5, 0.5, 0.5]}).interval(
        "generated"
    )
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)
