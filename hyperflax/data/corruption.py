"""Pretraining a base model on plain text: span corruption and LM adaptation.

Span corruption (Raffel et al. 2020, section 3.1.4): spans of a window of text are replaced by one sentinel each, and
the target lists the sentinels with what they replaced. LM adaptation (Lester et al. 2021, section 3.1): the window is
cut once, the front is the input and the rest the target. Both are pair sources for `PackedBatches`:

>>> pairs = SpanCorruption(documents, length=256)      # documents: an ExampleSource whose targets are the texts
>>> batches = PackedBatches(pairs, batch_size=32, inputs_length=256, targets_length=96, seed=0)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hyperflax.data.batches import Pair
from hyperflax.data.examples import ExampleSource, cumulated
from hyperflax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Windows:
    """Random windows of the texts of a source: a text in proportion to its length, a window anywhere in it.

    So tokens of long texts are equally likely to be read, those of a text shorter than a window less: by its length
    over the window's. Rows go to windows that fill them. Of a mixture, windows come from its components at its rates.

    Attributes:
      source: one or many tasks whose targets are texts; inputs are ignored.
      length: tokens of a window; texts that are shorter are taken whole.
      shortest: texts with fewer tokens are left out.
      longest: tokens of the longest window that there is.
    """

    source: ExampleSource
    length: int
    shortest: int = 16
    longest: int = dataclasses.field(init=False, repr=False, compare=False)
    _table: tuple[np.ndarray, np.ndarray, np.ndarray] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.length:
            raise ConfigError(f"Windows: expected 1 <= shortest <= length, got {self.shortest} and {self.length}")
        tasks, indices, lengths = [], [], []
        for task in range(len(self.source.task_names)):
            sizes = np.asarray(self.source.lengths(task))[:, 1]
            kept = np.flatnonzero(sizes >= self.shortest)
            tasks.append(np.full(len(kept), task))
            indices.append(kept)
            lengths.append(sizes[kept])
        if not sum(map(len, lengths)):
            raise DataError(f"texts: expected at least one of {self.shortest} tokens or more, found none")
        of_task, sizes = np.concatenate(tasks), np.concatenate(lengths)
        mixed = self.source.group_rates is not None
        cumulative = cumulated(self.source, of_task, sizes.astype(np.float64)) if mixed else np.cumsum(sizes)
        object.__setattr__(self, "longest", min(self.length, int(sizes.max())))
        object.__setattr__(self, "_table", (of_task, np.concatenate(indices), cumulative))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns one window, int32 [at most length]."""
        tasks, indices, cumulative = self._table
        at = int(rng.integers(cumulative[-1])) if self.source.group_rates is None else rng.random()
        row = int(np.searchsorted(cumulative, at, side="right"))
        text = self.source.example(int(tasks[row]), int(indices[row])).targets
        start = int(rng.integers(max(len(text) - self.length, 0) + 1))
        return text[start : start + self.length]


def noise_mask(length: int, rng: np.random.Generator, *, density: float = 0.15, mean_span: float = 3.0) -> np.ndarray:
    """Which tokens of a window are noise: `round(length * density)` of them in spans of mean length `mean_span`.

    Spans and gaps are random partitions (uniform over compositions), and the window starts with a gap, as in T5.

    Returns:
      bool [length], at least one True and one False.

    Raises:
      ConfigError: a window of fewer than 2 tokens.
    """
    if length < 2:
        raise ConfigError(f"noise_mask: expected a window of at least 2 tokens, got {length}")
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), noise, length - noise)

    def parts(total: int) -> np.ndarray:
        cuts = np.sort(rng.choice(total - 1, size=spans - 1, replace=False)) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))

    runs = np.stack([parts(length - noise), parts(noise)], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, runs)


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces the spans of `mask` in `tokens` by sentinels.

    Args:
      tokens: int32 [n]. mask: bool [n]. sentinels: ids to use in order, at least as many as spans.

    Returns:
      inputs (one sentinel for each span) and targets (each sentinel followed by what it replaced).
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    count = int(starts.sum())
    if count > len(sentinels):
        raise ConfigError(f"span corruption: expected at most {len(sentinels)} spans (sentinels), got {count}")
    number = np.cumsum(starts) - 1
    inputs = np.where(starts, sentinels[np.maximum(number, 0)], tokens)[~mask | starts]
    positions = np.flatnonzero(starts)
    noise_before = np.cumsum(mask) - mask
    targets = np.insert(tokens[mask], noise_before[positions], sentinels[:count])
    return inputs.astype(np.int32), targets.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """A pair source: one corrupted window a call.

    Attributes:
      source, length, shortest: as `Windows`.
      density: share of tokens that are noise. mean_span: mean length of a noise span.

    Raises:
      ConfigError: the vocabulary has too few sentinels for the spans of the longest window.
    """

    source: ExampleSource
    length: int
    shortest: int = 16
    density: float = 0.15
    mean_span: float = 3.0
    _windows: Windows = dataclasses.field(init=False, repr=False, compare=False)
    _sentinels: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        vocabulary = self.source.vocabulary
        sentinels = np.array([vocabulary.sentinel(i) for i in range(vocabulary.extra_ids)], np.int32)
        object.__setattr__(self, "_sentinels", sentinels)
        object.__setattr__(self, "_windows", Windows(self.source, self.length, max(self.shortest, 2)))
        self._corrupted(np.zeros(self._windows.longest, np.int32), np.random.default_rng(0))  # now, not at step 40,000

    def __call__(self, rng: np.random.Generator) -> list[Pair]:
        return [self._corrupted(self._windows.draw(rng), rng)]

    def _corrupted(self, tokens: np.ndarray, rng: np.random.Generator) -> Pair:
        mask = noise_mask(len(tokens), rng, density=self.density, mean_span=self.mean_span)
        return corrupt(tokens, mask, self._sentinels)


@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """A pair source: a window cut once, at a uniform place that leaves at least `shortest` tokens on each side.

    Raises:
      ConfigError: a window too short for that.
    """

    source: ExampleSource
    length: int
    shortest: int = 16
    _windows: Windows = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.length // 2:
            raise ConfigError(
                f"PrefixLM.shortest: expected 1 to {self.length // 2}, half of length, got {self.shortest}"
            )
        object.__setattr__(self, "_windows", Windows(self.source, self.length, 2 * self.shortest))

    def __call__(self, rng: np.random.Generator) -> list[Pair]:
        tokens = self._windows.draw(rng)
        cut = int(rng.integers(self.shortest, len(tokens) - self.shortest + 1))
        return [(tokens[:cut], tokens[cut:])]


@dataclasses.dataclass(frozen=True)
class MixedPairs:
    """A pair source that draws from others in proportion to `rates` (per call, not per token)."""

    sources: tuple
    rates: tuple[float, ...]
    _cumulative: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "rates", tuple(self.rates))
        if len(self.sources) != len(self.rates) or not self.sources or min(self.rates) <= 0:
            raise ConfigError(
                f"MixedPairs: expected a positive rate for each of {len(self.sources)} sources, got {self.rates}"
            )
        object.__setattr__(self, "_cumulative", np.cumsum(self.rates) / np.sum(self.rates))

    def __call__(self, rng: np.random.Generator) -> list[Pair]:
        index = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        return self.sources[min(index, len(self.sources) - 1)](rng)
