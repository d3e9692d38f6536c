"""The space of pipelines: values, conditions between them, and what cannot work, on ConfigSpace.

What a start allows is not listed by hand: every (start, kind, sites) is tried on the adapters' own rules
(`adapters/start.py`), and what they refuse becomes a forbidden clause. So a kind or a rule that is added there is known
here.

>>> space = PipelineSpace(t5_config, starts={"generated": (model.config.spec,)})
>>> space.sample(100, seed=0)[0].kind
'prefix'
>>> space.check(Pipeline(kind="lora", rank=1000, ...))
Traceback (most recent call last):
hyperflax.errors.ConfigError: pipeline: rank: expected a value in [1, 32], got 1000
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hyperflax.adapters.kinds import build_spec, kind_of
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.adapters.start import check_start
from hyperflax.errors import AdapterError, ConfigError, MissingExtraError
from hyperflax.tuner.pipeline import AS_GENERATED, GENERATED, RANDOM, SHARED, SITES, SOURCE, TUNE, Pipeline
from hyperflax.types import T5Config

if TYPE_CHECKING:
    import ConfigSpace

STARTS = (RANDOM, SHARED, GENERATED, SOURCE)
PROMPTS = (0.0, 0.25, 0.5)  # of `prompt_first`
KINDS = ("lora", "prefix", "lora+prefix", "soft_prompt", "parallel_mlp", "prefix+parallel_mlp", "full")
WITH_PROMPT = ("lora", "parallel_mlp", "full")  # kinds before which, alone or beside another, a prompt can be tuned
_BROUGHT = ("alpha_per_rank", "length", "bottleneck")  # what a start of that kind brings
_AT_ONCE = 32  # the same for every count, so that a larger one begins with what a smaller one draws
_KEYS = ("init", "kind", "sites", "prompt_first")  # what decides whether a start fits

Combination: TypeAlias = tuple[str, str | None, bool]
"""Kind, sites, and whether a prompt is tuned first: what decides whether an adapter can be a pipeline's start."""


class PipelineSpace:
    """All pipelines for one base model and the starts that it has.

    Args:
      t5: shape of the base model.
      starts: `shared`, `generated` and `source` where they exist, with the specs of their adapters. `random` does
        always. Of several adapters, one for each of several kinds, that of a pipeline's own kind is its start.

    Raises:
      ConfigError: an unknown start.
      MissingExtraError: ConfigSpace is not installed.
    """

    def __init__(self, t5: T5Config, starts: Mapping[str, Sequence[AdapterSpec]] | None = None):
        self.t5, self.starts = t5, {name: tuple(specs) for name, specs in (starts or {}).items()}
        if unknown := sorted(self.starts.keys() - {SHARED, GENERATED, SOURCE}):
            raise ConfigError(f"starts: expected some of shared, generated, source, got '{unknown[0]}'")
        self.space = _build(t5, self.starts, (RANDOM, *self.starts))

    def sample(self, count: int, seed: int) -> list[Pipeline]:
        """Returns so many different pipelines, equally many of every start, the one that trains nothing among them.

        A larger count begins with the pipelines of a smaller one.

        Few points of the whole space have a start that fits, so each start is drawn from a space of its own.
        """
        drawn = {
            pipeline.id: pipeline for pipeline in ([Pipeline(method=AS_GENERATED)] if GENERATED in self.starts else [])
        }
        seeds = np.random.SeedSequence(seed).generate_state(len(self._parts)).tolist()
        streams = [self._stream(part, own) for part, own in zip(self._parts, seeds, strict=True)]
        for stream in itertools.cycle(streams):
            if len(drawn) >= count:
                break
            pipeline = next(stream)
            drawn.setdefault(pipeline.id, pipeline)
        return list(drawn.values())[:count]

    def _stream(self, part: ConfigSpace.ConfigurationSpace, seed: int) -> Iterator[Pipeline]:
        """Draws without end, many at a time: ConfigSpace takes hardly longer for them than for one."""
        part.seed(seed)
        while True:
            yield from map(self.from_configuration, part.sample_configuration(_AT_ONCE))

    def check(self, pipeline: Pipeline) -> None:
        """Raises ConfigError, with what was expected, where a pipeline is not in the space."""
        self.to_configuration(pipeline)

    def to_configuration(self, pipeline: Pipeline) -> ConfigSpace.Configuration:
        """Returns the pipeline as ConfigSpace has it. Raises ConfigError where it is not in the space."""
        import ConfigSpace

        values = pipeline.to_json()
        for name, value in values.items():
            if name not in self.space:
                raise ConfigError(f"pipeline: {name}: nothing to choose here, got {value!r}")
            if not self.space[name].legal_value(value):
                raise ConfigError(f"pipeline: {name}: expected {range_of(self.space[name])}, got {value!r}")
        try:
            return ConfigSpace.Configuration(self.space, values=values)
        except ConfigSpace.exceptions.ActiveHyperparameterNotSetError as error:
            raise ConfigError(f"pipeline {values}: '{error.hyperparameter.name}' applies and is not given") from error
        except ConfigSpace.exceptions.InactiveHyperparameterSetError as error:
            raise ConfigError(
                f"pipeline {values}: '{error.hyperparameter.name}' does not apply and is given"
            ) from error
        except ConfigSpace.exceptions.ForbiddenValueError as error:
            combination = {name: values[name] for name in _KEYS if name in values}
            raise ConfigError(f"pipeline: no start of this kind: {combination} ({error})") from error

    def from_configuration(self, configuration: Mapping[str, Any]) -> Pipeline:
        """The inverse of `to_configuration`; takes any mapping of ConfigSpace's values."""
        return Pipeline(**{name: plain(value) for name, value in dict(configuration).items()})

    @functools.cached_property
    def _parts(self) -> list[ConfigSpace.ConfigurationSpace]:
        """The spaces of the single starts, `random` first; without those from which nothing can be trained."""
        inits = [RANDOM, *(init for init, specs in self.starts.items() if possible_starts(self.t5, *specs))]
        return [_build(self.t5, self.starts, (init,)) for init in inits]


def possible_starts(t5: T5Config, *specs: AdapterSpec) -> set[Combination]:
    """Returns the (kind, sites, with a prompt first) of which an adapter of a spec can be the start.

    Args:
      t5: shape of the base model. specs: of a start's adapters; of several, each is for its own kinds alone.
    """
    fitting = set()
    for spec, (kind, sites, prompt) in itertools.product(specs, combinations()):
        if len(specs) > 1 and set(kind.split("+")) != _kinds_of(spec):
            continue
        pipeline = Pipeline(kind=kind, sites=sites, rank=1, length=1, bottleneck=1, prompt_first=float(prompt))
        try:
            check_start(spec, build_spec(pipeline.kinds(spec), t5))
        except AdapterError:
            continue
        fitting.add((kind, sites, prompt))
    return fitting


def combinations() -> list[Combination]:
    """Returns all that there are, the default first."""
    return [
        (kind, sites, prompt)
        for kind in KINDS
        for sites in (SITES if _has(kind, "lora") else (None,))
        for prompt in ((False, True) if _has(kind, *WITH_PROMPT) else (False,))
    ]


def _has(kind: str, *names: str) -> bool:
    """Whether one of the names is among the kinds that `kind` joins."""
    return not set(names).isdisjoint(kind.split("+"))


def _build(
    t5: T5Config, starts: Mapping[str, Sequence[AdapterSpec]], inits: Sequence[str]
) -> ConfigSpace.ConfigurationSpace:
    """The space of the pipelines with one of `inits`."""
    fitting = {init: possible_starts(t5, *starts[init]) for init in inits if init != RANDOM}
    possible = [one for one in combinations() if RANDOM in inits or any(one in known for known in fitting.values())]
    nothing = GENERATED in starts and len(inits) > 1
    method, tuned, of_kinds = hyperparameters([name for name in STARTS if name in inits], possible, nothing)
    kinds = list(dict.fromkeys(kind for kind, _, _ in possible))
    import ConfigSpace as cs

    space = cs.ConfigurationSpace()
    space.add(method, *tuned)
    space.add(*(cs.EqualsCondition(hp, method, TUNE) for hp in tuned))
    for hp, users in of_kinds:
        using = [kind for kind in kinds if _has(kind, *users)]
        free = [init for init in inits if hp.name not in _BROUGHT or not _kinds_of(*starts.get(init, ())) & set(users)]
        if not using or not free:
            continue
        space.add(hp)
        applies = cs.InCondition(hp, space["kind"], using)
        if hp.name == "length":
            applies = cs.OrConjunction(applies, cs.InCondition(hp, space["prompt_first"], list(PROMPTS[1:])))
        if len(free) < len(inits):
            applies = cs.AndConjunction(applies, cs.InCondition(hp, space["init"], free))
        space.add(applies)
    for init, known in fitting.items():
        space.add(*_forbidden(space, init, kinds, known))
    return space


def hyperparameters(
    inits: Sequence[str], possible: Sequence[Combination], nothing: bool = True
) -> tuple[Any, list[Any], list[tuple[Any, tuple[str, ...]]]]:
    """Returns `method`; what applies to all pipelines that train; and the rest, each with the kinds it applies to.

    Args:
      inits: the choices. possible: combinations that there are, in the order of `combinations`; the first one is the
        default, since ConfigSpace takes no forbidden one. nothing: whether training nothing is a choice.

    Raises:
      MissingExtraError: ConfigSpace is not installed.
    """
    try:
        import ConfigSpace as cs
    except ImportError as error:
        raise MissingExtraError("ConfigSpace", "tuner") from error

    kind, place, prompt = possible[0]
    # Where no kind has sites, nobody adds them.
    sites = [name for name in SITES if any(name == one for _, one, _ in possible)] or list(SITES)
    prompts = PROMPTS if any(first for _, _, first in possible) else PROMPTS[:1]
    tuned: list[Any] = [
        cs.Categorical("init", inits),
        cs.Categorical("kind", list(dict.fromkeys(one for one, _, _ in possible)), default=kind),
        cs.Categorical("dropout", [0.0, 0.1, 0.2], ordered=True, default=0.0),
        cs.Categorical("optimizer", ["adamw", "adafactor", "lion"]),
        cs.Float("learning_rate", (1e-5, 1e-1), log=True, default=1e-3),
        cs.Categorical("schedule", ["constant", "linear", "cosine"], default="cosine"),
        cs.Float("warmup", (0.0, 0.2), default=0.05),
        cs.Categorical("weight_decay", [0.0, 0.001, 0.01, 0.1], ordered=True, default=0.0),
        cs.Categorical("batch_size", [4, 8, 16, 32], ordered=True, default=16),
        cs.Categorical("epochs", [4, 8, 16, 32], ordered=True, default=16),
        cs.Categorical("skip", [0.0, 0.25, 0.5], ordered=True, default=0.0),
    ]
    of_kinds: list[tuple[Any, tuple[str, ...]]] = [
        (cs.Categorical("sites", sites, default=place or sites[0]), ("lora",)),
        (cs.Integer("rank", (1, 32), log=True, default=8), ("lora",)),
        (cs.Float("alpha_per_rank", (0.25, 4.0), log=True, default=1.0), ("lora",)),
        (cs.Categorical("prompt_first", prompts, ordered=True, default=prompts[bool(prompt)]), WITH_PROMPT),
        (cs.Integer("length", (1, 32), log=True, default=8), ("prefix", "soft_prompt")),
        (cs.Integer("bottleneck", (4, 64), log=True, default=16), ("parallel_mlp",)),
    ]
    return cs.Categorical("method", [TUNE, AS_GENERATED] if nothing else [TUNE]), tuned, of_kinds


def _forbidden(space: Any, init: str, kinds: Sequence[str], fitting: set[Combination]) -> list[Any]:
    """Clauses against every combination that `init` is no start of; whole kinds at once where none of theirs is."""
    import ConfigSpace as cs

    clauses = []
    for kind in kinds:
        members = [member for member in combinations() if member[0] == kind]
        members = [member for member in members if _sayable(space, member)]
        refused = [member for member in members if member not in fitting]
        both: list[Any] = [cs.ForbiddenEqualsClause(space["init"], init), cs.ForbiddenEqualsClause(space["kind"], kind)]
        if len(refused) == len(members):
            clauses.append(cs.ForbiddenAndConjunction(*both))
            continue
        for _, sites, prompt in refused:
            parts = list(both)
            if sites is not None:
                parts.append(cs.ForbiddenEqualsClause(space["sites"], sites))
            if _has(kind, *WITH_PROMPT):
                parts.append(cs.ForbiddenInClause(space["prompt_first"], list(PROMPTS[1:] if prompt else PROMPTS[:1])))
            clauses.append(cs.ForbiddenAndConjunction(*parts))
    return clauses


def _kinds_of(*specs: AdapterSpec) -> set[str]:
    return {kind_of(leaf).kind for spec in specs for leaf in spec.leaves}


def _sayable(space: Any, combination: Combination) -> bool:
    """Whether the space has these choices at all."""
    _, sites, prompt = combination
    return (sites is None or space["sites"].legal_value(sites)) and not (
        prompt and not space["prompt_first"].legal_value(0.5)
    )


def range_of(hp: Any) -> str:
    """Says which values a hyper-parameter has."""
    values = getattr(hp, "choices", getattr(hp, "sequence", None))
    if values is not None:
        return f"one of {', '.join(str(plain(value)) for value in values)}"
    return f"a value in [{hp.lower:g}, {hp.upper:g}]"


def plain(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item() if isinstance(value, np.generic) else value
