"""Tasks as plain (inputs, targets) pairs: what a base model, or a plain T5 as reference system, is trained on.

`TaskPairs` shows a task's definition, some of its examples, both or neither before the input, as an `EpisodeConfig`
says, rendered exactly as evaluation renders them. `Induction` asks for the definition behind a handful of examples.
Both are pair sources for `PackedBatches`:

>>> config = EpisodeConfig(shots=4, min_shots=1, examples=1, demonstrations="inputs", inputs_length=256)
>>> batches = PackedBatches(TaskPairs(source, config), batch_size=16, inputs_length=512, targets_length=96, seed=0)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hyperflax.data.batches import Pair
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.episode_plan import make_plan
from hyperflax.data.examples import Example, ExampleSource
from hyperflax.data.rendering import episode_arrays, render
from hyperflax.data.vocabularies import EOS_ID
from hyperflax.errors import DataError


class _Drawer:
    """Draws a task and distinct examples of it: K support ones (K uniform where the config says so), then Q scored."""

    def __init__(self, source: ExampleSource, config: EpisodeConfig):
        self.source, self.config = source, config
        self.plan = make_plan(source, config)

    def draw(self, rng: np.random.Generator) -> tuple[int, list[Example], list[Example]]:
        """Returns the position in the plan, the support and the scored examples."""
        config, plan = self.config, self.plan
        position = plan.draw(rng.random())
        least = config.shots if config.min_shots is None else config.min_shots
        shots = int(rng.integers(least, config.shots + 1))
        drawn = rng.choice(plan.eligible[position], size=shots + config.examples, replace=False)
        examples = self.source.examples(int(plan.tasks[position]), drawn.tolist())
        return position, examples[:shots], examples[shots:]


@dataclasses.dataclass(frozen=True)
class TaskPairs:
    """A pair source: the Q scored examples of one episode a call, behind the context that the config places in inputs.

    Attributes:
      source: of the tasks.
      config: `inputs_length` and `targets_length` bound a pair; what stands in the support is not shown.
    """

    source: ExampleSource
    config: EpisodeConfig
    _drawer: _Drawer = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_drawer", _Drawer(self.source, self.config))

    def __call__(self, rng: np.random.Generator) -> list[Pair]:
        position, support, scored = self._drawer.draw(rng)
        info = self._drawer.plan.infos[position]
        arrays = episode_arrays(support, scored, self.config, self.source.vocabulary, info)
        rows = zip(arrays["encoder_input_tokens"], arrays["decoder_target_tokens"], strict=True)
        return [(_content(inputs), _content(targets)) for inputs, targets in rows]


@dataclasses.dataclass(frozen=True)
class Induction:
    """A pair source: some examples of a task in, its definition out.

    Attributes:
      source: tasks with definitions.
      config: K and its range, `inputs_length` for the examples and `targets_length` for the definition; examples that
        do not fit whole are left out.

    Raises:
      DataError: a usable task without a definition.
    """

    source: ExampleSource
    config: EpisodeConfig
    _drawer: _Drawer = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        config = self.config.replace(definition="none", demonstrations="inputs")
        object.__setattr__(self, "_drawer", _Drawer(self.source, config))
        for task in self._drawer.plan.tasks.tolist():
            size = len(self.source.info(task).definition)
            if not 1 <= size < self.config.targets_length:
                name = self.source.task_names[task]
                raise DataError(
                    f"task '{name}': expected a definition of 1 to {self.config.targets_length - 1} tokens, got {size}"
                )

    def __call__(self, rng: np.random.Generator) -> list[Pair]:
        position, support, scored = self._drawer.draw(rng)
        vocabulary, config = self.source.vocabulary, self.config
        sentinels = (vocabulary.sentinel(config.input_sentinel), vocabulary.sentinel(config.target_sentinel))
        pieces, used = [], 1
        for tokens in (render(example, sentinels) for example in support or scored[:1]):
            if used + len(tokens) <= config.inputs_length:
                pieces.append(tokens)
                used += len(tokens)
        if not pieces:
            return []
        definition = self.source.info(int(self._drawer.plan.tasks[position])).definition
        return [(np.concatenate(pieces), definition)]


def _content(row: np.ndarray) -> np.ndarray:
    """The row without its end of sequence, the last of them, and padding."""
    return row[: np.flatnonzero(row == EOS_ID)[-1]]
