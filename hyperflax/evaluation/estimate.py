"""Use an adapter or not? An estimate from the very examples that it is made from.

Some of the examples are left out, an adapter is made from the rest, and the ones left out are asked; in turn, so that
every example is asked once. Beside the generated adapter stand the same base model bare, with the rest of the examples
in its input, and with an adapter made from *mismatched* examples, in which every input has another one's target: what
that one scores can be had from the look of the targets alone, without how they follow from the inputs.

An adapter made from all examples has seen more than those that were scored, so the estimate errs on the low side. Its
intervals are for the few examples that there are, and wide: three right of four leave everything from .30 to .95 open.

>>> found = estimate(model, [("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A."), ...])
>>> found.advice
'use'
>>> print(found.table())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from hyperflax.data.episode_plan import support_overhead
from hyperflax.data.examples import Example, TaskInfo, tokenise
from hyperflax.data.jsonl import TextPair, as_lines
from hyperflax.data.rendering import deal
from hyperflax.data.vocabularies import as_written
from hyperflax.errors import AdapterError, DataError
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.controls import derangement
from hyperflax.evaluation.coverage import count_cut, count_long
from hyperflax.evaluation.held_out import HeldOut, TaskTokens
from hyperflax.evaluation.intervals import Interval, mean_of_examples
from hyperflax.evaluation.metrics import example_metric
from hyperflax.evaluation.runner import EvaluationTask

if TYPE_CHECKING:
    from hyperflax.hypermodel import Hypermodel

Advice = Literal["use", "refine", "give more examples", "give shorter examples", "fine-tune"]

CONTEXT = 1024  # tokens of examples in a base model's input: attention over more of them would need gigabytes
FOLDS = 8  # so many adapters are made at most, whatever the number of examples
GOOD = 0.75  # a score that one can work with
MANY = 16  # examples from which fine-tuning promises more than a few further examples
REFINE_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What leaving some examples out has shown.

    Attributes:
      metric: name of the metric.
      refine_steps: of the condition `refined`.
      made: the condition of the adapter that the estimate is for.
      asked: the examples in the order in which `predictions` and `scores` have them, targets as the vocabulary writes
        them: `vocabularies.as_written`.
      predictions: condition -> one prediction per example. Conditions are `bare`, `in_context`, `generated`, `refined`
        and, from three examples on, `mismatched`.
      scores: condition -> one score in 0..1 per example.
      cut_inputs: inputs of which only the beginning was asked; a prediction refuses such a one.
      long_targets: targets with more tokens than an answer can have, which no adapter gives whole.
    """

    metric: str
    refine_steps: int
    made: Literal["generated", "refined"]
    asked: tuple[tuple[str, str], ...]
    predictions: dict[str, list[str]]
    scores: dict[str, list[float]]
    cut_inputs: int = 0
    long_targets: int = 0

    def interval(self, condition: str) -> Interval:
        """A condition's mean and its 95% interval: Wilson's where examples are right or wrong, else the bootstrap."""
        return mean_of_examples(self.scores[condition])

    def mean(self, condition: str) -> float:
        """A condition's mean score."""
        return float(np.mean(self.scores[condition]))

    @property
    def best(self) -> str:
        """`refined` where it did better than `generated`."""
        return max("generated", "refined", key=self.mean)

    @property
    def works(self) -> bool:
        """The better adapter surely beats the bare model, and scores more than mismatched examples give."""
        found = self.interval(self.best)
        mismatched = self.mean("mismatched") if "mismatched" in self.scores else 0.0
        return found.low > self.mean("bare") and found.mean > mismatched

    @property
    def advice(self) -> Advice:
        """What to do next."""
        if self.works and self.mean(self.best) >= GOOD:
            return "refine" if self.best == "refined" != self.made else "use"
        if 1 - self.long_targets / len(self.asked) < GOOD:  # all others right would not do
            return "give shorter examples"
        return "give more examples" if len(self.asked) < MANY else "fine-tune"

    @property
    def reason(self) -> str:
        """Why, in one sentence, and what there was no room for."""
        told = [self._found]
        if self.cut_inputs:
            told.append(f"{self.cut_inputs} of {len(self.asked)} inputs are cut to be asked")
        if self.long_targets:
            told.append(f"{self.long_targets} of {len(self.asked)} targets are longer than an answer can be")
        return "; ".join(told)

    @property
    def _found(self) -> str:
        found = self.interval(self.best)
        told = f"{self.best} adapters score {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}] on examples left out"
        if not self.works:
            return f"{told}, which shows no gain from them"
        if found.mean < GOOD:
            return f"{told}: better than without, and not yet {GOOD:.2f}"
        if self.best == "generated" != self.made:
            return f"{told}, and more than refined ones: use one without refining"
        context = self.mean("in_context")
        return f"{told}; as many of the same examples as fit the base model's input score {context:.2f} there"

    def to_json(self) -> dict[str, Any]:
        """Returns json: the advice and why, each condition's mean and interval, each example's predictions."""
        return {
            "metric": self.metric,
            "refine_steps": self.refine_steps,
            "made": self.made,
            "best": self.best,
            "advice": self.advice,
            "reason": self.reason,
            "cut_inputs": self.cut_inputs,
            "long_targets": self.long_targets,
            "conditions": {name: dataclasses.asdict(self.interval(name)) for name in self.scores},
            "examples": [
                {"input": text, "target": target, **{name: given[i] for name, given in self.predictions.items()}}
                for i, (text, target) in enumerate(self.asked)
            ],
        }

    def table(self) -> str:
        """Returns a row per condition, and the advice."""
        rows = [f"{'left out and asked':<20} {self.metric}, {len(self.asked)} examples"]
        for name in self.scores:
            found = self.interval(name)
            rows.append(f"  {name:<18} {found.mean:.3f}  [{found.low:.3f}, {found.high:.3f}]")
        return "\n".join([*rows, f"{self.advice}: {self.reason}"])


def estimate(
    model: Hypermodel,
    examples: Iterable[TextPair],
    *,
    definition: str | None = None,
    metric: str = "exact_match",
    refine_steps: int = 0,
    supports: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    """Leaves out each example once, in at most `FOLDS` parts, and asks it of an adapter made from the rest.

    Args:
      model: the hypermodel.
      examples, definition, supports: as in `Hypermodel.adapt`, and two examples at least. In context stand as many of
        the rest as fit `CONTEXT` tokens. Inputs that are longer than the model's are cut to be asked, and a target
        that is longer than its answers is scored whole: both are counted.
      metric: how a prediction is scored against its target.
      refine_steps: of the condition `refined`; 0, for an adapter that is not refined, shows what `REFINE_STEPS` give.
      seed: of the mismatched pairs.
      progress: shows a bar, on a terminal; a large model takes minutes.

    Raises:
      DataError: fewer than two examples, one that is no pair of strings, or one that is too long for the support.
      ConfigError: an unknown metric, or one that is no mean over examples.
      AdapterError: an adapter under which the base model's logits are not finite; names its condition.
    """
    score = example_metric(metric, "estimate: metric").score
    pairs = [(line.input, line.target) for line in as_lines(examples)]
    if len(pairs) < 2:
        raise DataError(f"estimate: expected at least 2 examples, to leave one out, got {len(pairs)}")
    made = "refined" if refine_steps else "generated"
    refine_steps = refine_steps or REFINE_STEPS
    parts = deal(range(len(pairs)), min(len(pairs), FOLDS))
    folds = _folds(model, pairs, pairs, parts, definition)
    options: dict[str, Any] = {"refine_steps": refine_steps, "supports": min(supports, len(pairs) - len(parts[0]))}
    runnable = Conditions(model, folds, **options)
    few = Conditions(model, _folds(model, pairs, pairs, parts, definition, most=CONTEXT))
    asking = {
        **runnable.pick("bare"),
        **few.pick("in_context"),
        **runnable.pick("generated", "refined"),
    }
    tasks = dict.fromkeys(asking, folds.tasks)
    if len(pairs) > 2:
        mismatched = _folds(model, pairs, _mismatch(pairs, seed), parts, definition, cut=True)
        asking["mismatched"] = Conditions(model, mismatched, **options).pick("generated")["generated"]
        tasks["mismatched"] = mismatched.tasks
    bar = tqdm(asking, desc="estimate", unit="condition", leave=False, disable=None if progress else True)
    answers = {}
    for name in bar:
        try:
            answers[name] = asking[name](tasks[name])
        except AdapterError as error:
            raise AdapterError(f"condition '{name}': {error}") from error
    vocabulary = model.config.vocabulary
    asked = [(pairs[i][0], as_written(pairs[i][1], vocabulary)) for part in parts for i in part]
    predictions = {name: [text for fold in given for text in fold] for name, given in answers.items()}
    scores = {
        name: [score([text], [[target]]) for text, (_, target) in zip(given, asked, strict=True)]
        for name, given in predictions.items()
    }
    episodes = model.config.episodes
    cut_inputs, _ = count_cut({"": folds}, episodes.inputs_length)
    long_targets, _ = count_long({"": folds}, episodes.targets_length)
    return Estimate(metric, refine_steps, made, tuple(asked), predictions, scores, cut_inputs, long_targets)


def _mismatch(pairs: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """Every input with another one's target."""
    others = derangement(len(pairs), seed)
    return [(text, pairs[other][1]) for (text, _), other in zip(pairs, others, strict=True)]


def _folds(
    model: Hypermodel,
    pairs: Sequence[tuple[str, str]],
    shown: Sequence[tuple[str, str]],
    parts: Sequence[Sequence[int]],
    definition: str | None,
    cut: bool = False,
    most: int | None = None,
) -> HeldOut:
    """One evaluation task for each part: it is asked, and the rest of `shown` is the support.

    With `cut`, targets are cut to what a row of the support leaves them: pairs that fit may not fit mixed. `most` is
    how many tokens the support may have in all; the first example stays.
    """
    vocabulary = model.config.vocabulary
    info = TaskInfo(definition=tokenise(definition, vocabulary)) if definition else TaskInfo()
    room = model.config.episodes.support_length - support_overhead(info, model.config.episodes)
    tasks, given = [], {}
    for number, part in enumerate(parts):
        support = [pair for i, pair in enumerate(shown) if i not in part]
        asked = [pairs[i] for i in part]
        name = f"part {number}"
        shown_tokens, asked_tokens = (
            tuple(Example.from_text(*pair, vocabulary) for pair in some) for some in (support, asked)
        )
        if cut:
            shown_tokens = tuple(e._replace(targets=e.targets[: max(room - len(e.inputs), 0)]) for e in shown_tokens)
        if most is not None:
            sizes = np.cumsum([len(e.inputs) + len(e.targets) for e in shown_tokens])
            shown_tokens = shown_tokens[: max(1, int(np.searchsorted(sizes, most, side="right")))]
        given[name] = TaskTokens(shown_tokens, asked_tokens, info)
        inputs, references = tuple(x for x, _ in asked), tuple((y,) for _, y in asked)
        tasks.append(EvaluationTask(name, inputs, references, support=tuple(support), instruction=definition or ""))
    return HeldOut(tuple(tasks), given)
