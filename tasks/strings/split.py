"""Training and held-out programs, split by behaviour.

The behaviour of a program is its outputs on the 64 fixed probes of its input type. `build` makes the split from a seed:

1. Random programs are drawn (`sampling`), with and without the reserved operation pairs.
2. Of programs of one type that agree on 75% of the probes the simplest stays: fewest steps, then shortest spelling.
   (The promise is 90%; the stricter bound leaves fewer tasks that four examples cannot tell apart.)
3. Some rarer ordered pairs of operations are reserved: training has no program in which they follow each other.
4. Held-out programs are drawn: a third contain a reserved pair. A held-out pipeline is in training under no type, and a
   held-out program agrees with no training pipeline *of any type* on 90% of its own probes.
5. Training grows (`grow`): more programs, without a reserved pair, that break none of these promises, so that a model
   meets many compositions of the same operations.

The result is stored beside this file (`train.txt`, `heldout.txt`, one instruction a line; held-out lines that contain a
reserved pair start with `+ `), because drawing takes minutes and reading takes none. `python -m
hyperflax_tasks.strings.split` draws it again; `--check` only verifies the stored lists.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hyperflax.errors import DataError

from .inputs import NUM_PROBES, TYPES, probes
from .lexicon import Draw
from .programs import Program, parse
from .sampling import TYPE_WEIGHTS, sample_program

HERE = pathlib.Path(__file__).resolve().parent
AGREE = 58  # of 64 probes: the first number that is at least 90%
DISTINCT = 48  # 75%
NUM_TRAIN = 12000
NUM_GROWN = 36000
DEPTH_MIX = (0.20, 0.40, 0.27, 0.13)
HELD_OUT_OLD_PAIRS = (120, 150, 92, 38)  # by depth
HELD_OUT_NEW_PAIRS = (0, 90, 70, 40)
SEED = 2024
Pair = tuple[str, str]
Candidate = tuple[int, Program, tuple[str, ...]]


class Split(NamedTuple):
    """The programs and, for each held-out one, whether it contains an operation pair that training never has."""

    train: tuple[Program, ...]
    held_out: tuple[Program, ...]
    held_out_new_pair: tuple[bool, ...]


class _Ids:
    """Strings as ints, so that numpy can compare outputs exactly; 0 is no string."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def row(self, texts: Iterable[str | None]) -> np.ndarray:
        known = self.known
        return np.array([0 if t is None else known.setdefault(t, len(known) + 1) for t in texts], np.int32)


def simplicity(program: Program) -> tuple[int, int, str]:
    """Smaller is simpler: depth, length of the spelling, then the alphabet."""
    return program.depth, len(program.pipeline), program.pipeline


def draw_candidates(draw: Draw, attempts: int) -> list[Candidate]:
    """Random programs, each once: how often it was drawn, the program, its outputs on the probes."""
    kinds = list(TYPES)
    weights = [TYPE_WEIGHTS.get(kind, 1.0) for kind in kinds]
    found: dict[str, tuple[Program, tuple[str, ...]]] = {}
    times: Counter[str] = Counter()
    for _ in range(attempts):
        depth = draw.weighted((1, 2, 3, 4), (0.28, 0.38, 0.23, 0.11))
        got = sample_program(draw.weighted(kinds, weights), depth, draw)
        if got is not None:
            found[got[0].instruction] = got
            times[got[0].instruction] += 1
    return [(times[name], *got) for name, got in found.items()]


def shortened(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates and, drawn 0 times, each of them with one step left out.

    So a program with a step that changes nothing meets its shorter equal in `distinct`.
    """
    found = {program.instruction: (times, program, outputs) for times, program, outputs in candidates}
    for _, program, _ in candidates:
        for i in range(program.depth if program.depth > 1 else 0):
            shorter = Program(program.kind, program.steps[:i] + program.steps[i + 1 :])
            if shorter.instruction not in found:
                outputs = tuple(out for probe in probes(shorter.kind) if (out := shorter.try_run(probe)))
                if len(outputs) == len(probes(shorter.kind)):
                    found[shorter.instruction] = (0, shorter, outputs)
    return list(found.values())


def distinct(candidates: Iterable[Candidate], known: Iterable[Program] = ()) -> list[tuple[int, Program]]:
    """One program, the simplest, of each behaviour that no `known` program has, and how often it was drawn."""
    ids = _Ids()
    kept: dict[str, list[Program]] = defaultdict(list)
    drawn: Counter[Program] = Counter()
    table: dict[str, np.ndarray] = {}

    def keep(program: Program, row: np.ndarray) -> None:
        n = len(kept[program.kind])
        if n == len(table.setdefault(program.kind, np.zeros((1024, NUM_PROBES), np.int32))):
            table[program.kind] = np.concatenate([table[program.kind], np.zeros_like(table[program.kind])])
        table[program.kind][n] = row
        kept[program.kind].append(program)

    old = set(known)
    for program in sorted(old, key=simplicity):
        keep(program, ids.row(map(program.run, probes(program.kind))))
    for times, program, outputs in sorted(candidates, key=lambda item: simplicity(item[1])):
        row, mine = ids.row(outputs), kept[program.kind]
        agree = (table[program.kind][: len(mine)] == row).sum(1) if mine else np.zeros(1, np.int32)
        if agree.max() >= DISTINCT:
            drawn[mine[agree.argmax()]] += times
            continue
        drawn[program] += times
        keep(program, row)
    return [(drawn[p], p) for programs in kept.values() for p in programs if drawn[p] and p not in old]


def popular(programs: list[tuple[int, Program]], quota: list[int], draw: Draw) -> list[Program]:
    """The behaviours that were drawn most often, by depth, in random order: what makes most sense on its type."""
    shuffled = draw.sample(programs, len(programs))
    chosen = _take([p for _, p in sorted(shuffled, key=lambda item: -item[0])], quota)
    return draw.sample(chosen, len(chosen))


def reserve_pairs(programs: list[Program], draw: Draw, wanted: int) -> set[Pair]:
    """Ordered operation pairs of middling frequency that together occur in about `wanted` programs."""
    counts = Counter(pair for p in programs for pair in set(p.pairs))
    middling = sorted(pair for pair, n in counts.items() if 5 <= n <= 60)
    chosen: set[Pair] = set()
    total = 0
    for pair in draw.sample(middling, len(middling)):
        if total >= wanted:
            break
        chosen.add(pair)
        total += counts[pair]
    return chosen


def collisions(
    held_out: Sequence[Program], train: Iterable[Program], kinds: Iterable[str] | None = None
) -> set[tuple[Program, str]]:
    """The held-out programs and training pipelines, of whatever type, that agree on 90% of the program's probes."""
    steps = {p.pipeline: p for p in train}.values()
    hits: set[tuple[Program, str]] = set()
    for kind in sorted({p.kind for p in held_out} if kinds is None else set(kinds)):
        mine = [i for i, p in enumerate(held_out) if p.kind == kind]
        if not mine:
            continue
        ids = _Ids()
        rows = np.stack([ids.row(map(held_out[i].try_run, probes(kind))) for i in mine])
        known, allowed = ids.known, NUM_PROBES - AGREE
        for pipeline in steps:
            row, misses = np.zeros(NUM_PROBES, np.int32), 0
            for j, text in enumerate(probes(kind)):
                row[j] = known.get(pipeline.try_run(text) or "", -1)
                misses += row[j] == -1
                if misses > allowed:
                    break
            else:
                for i in np.flatnonzero((rows == row).sum(1) >= AGREE):
                    hits.add((held_out[mine[i]], pipeline.pipeline))
    return hits


def _take(programs: list[Program], quota: Sequence[int]) -> list[Program]:
    left = list(quota)
    taken = []
    for program in programs:
        if left[program.depth - 1] > 0:
            left[program.depth - 1] -= 1
            taken.append(program)
    if any(left):
        raise DataError(f"split: too few programs by depth, {left} missing; draw more candidates")
    return taken


def build(
    seed: int = SEED,
    attempts: int = 36000,
    num_train: int = NUM_TRAIN,
    old_pairs: Sequence[int] = HELD_OUT_OLD_PAIRS,
    new_pairs: Sequence[int] = HELD_OUT_NEW_PAIRS,
) -> Split:
    """Draws the split; see the module's docstring. Pure in its arguments.

    Args:
      seed: of all draws.
      attempts: how many candidates are drawn; too few for the numbers below raise `DataError`.
      num_train: training programs, by depth in the shares `DEPTH_MIX`.
      old_pairs, new_pairs: by depth, held-out programs without and with an operation pair that training lacks.
    """
    draw = Draw(f"hyperflax strings split {seed}")
    quota = [round(num_train * share) for share in DEPTH_MIX]
    wanted = [n + n // 20 + 3 * old + 5 * new for n, old, new in zip(quota, old_pairs, new_pairs, strict=True)]
    programs = popular(distinct(shortened(draw_candidates(draw, attempts))), wanted, draw)
    reserved = reserve_pairs(programs, draw, 4 * sum(new_pairs))
    new = [p for p in programs if not reserved.isdisjoint(p.pairs)]
    old = [p for p in programs if reserved.isdisjoint(p.pairs)]
    spread = Counter(p.pipeline for p in old)
    chosen = {p.pipeline for p in _candidates_for_held_out(old, spread, old_pairs)}
    train = [p for p in old if p.pipeline not in chosen]
    clean = []
    for group in (new, [p for p in old if p.pipeline in chosen]):
        hit = {program for program, _ in collisions(group, train)}
        clean.append([p for p in group if p not in hit])
    train = sorted(_take(train, quota), key=lambda p: p.instruction)
    used = {s.name for p in train for s in p.steps}
    known = {pair for p in train for pair in p.pairs}
    new = [p for p in clean[0] if used.issuperset(s.name for s in p.steps)]
    old = [p for p in clean[1] if known.issuperset(p.pairs)]
    held_out = [(p, True) for p in _take(new, new_pairs)] + [(p, False) for p in _take(old, old_pairs)]
    held_out.sort(key=lambda item: item[0].instruction)
    return Split(tuple(train), tuple(p for p, _ in held_out), tuple(flag for _, flag in held_out))


def grow(split: Split, seed: int = SEED, attempts: int = 110000, num_train: int = NUM_GROWN) -> Split:
    """Adds training programs to a split, up to `num_train`; the held-out ones stay. Pure in its arguments.

    A new program behaves unlike every training program of its type (75%), has no pair that only held-out programs have,
    and its pipeline is neither a held-out one nor agrees with one (90%, whatever the type).

    Args:
      split: what to start from.
      seed, attempts: as in `build`.
      num_train: training programs in all, the new ones by depth in the shares `DEPTH_MIX`.
    """
    draw = Draw(f"hyperflax strings growth {seed}")
    reserved = {pair for p in split.held_out for pair in p.pairs} - {pair for p in split.train for pair in p.pairs}
    taken = {p.pipeline for p in split.held_out}
    candidates = [
        candidate
        for candidate in shortened(draw_candidates(draw, attempts))
        if reserved.isdisjoint(candidate[1].pairs) and candidate[1].pipeline not in taken
    ]
    fresh = distinct(candidates, split.train)
    hit = {pipeline for _, pipeline in collisions(split.held_out, [p for _, p in fresh])}
    quota = [round((num_train - len(split.train)) * share) for share in DEPTH_MIX]
    new = popular([(times, p) for times, p in fresh if p.pipeline not in hit], quota, draw)
    train = sorted((*split.train, *new), key=lambda p: p.instruction)
    return split._replace(train=tuple(train))


def _candidates_for_held_out(programs: list[Program], spread: Counter[str], quota: Sequence[int]) -> list[Program]:
    """Twice as many as needed by depth, of pipelines that few types share."""
    left = [2 * n for n in quota]
    chosen = []
    for p in programs:
        if left[p.depth - 1] > 0 and spread[p.pipeline] <= 3:
            left[p.depth - 1] -= 1
            chosen.append(p)
    return chosen


def save(split: Split, folder: pathlib.Path = HERE) -> None:
    """Writes `train.txt` and `heldout.txt`."""
    (folder / "train.txt").write_text("".join(f"{p.instruction}\n" for p in split.train), encoding="utf-8")
    lines = zip(split.held_out, split.held_out_new_pair, strict=True)
    text = "".join(f"{'+ ' if new else ''}{p.instruction}\n" for p, new in lines)
    (folder / "heldout.txt").write_text(text, encoding="utf-8")


@functools.cache
def load_split() -> Split:
    """The stored split."""
    train = tuple(map(parse, (HERE / "train.txt").read_text(encoding="utf-8").splitlines()))
    lines = (HERE / "heldout.txt").read_text(encoding="utf-8").splitlines()
    held_out = tuple(parse(line.removeprefix("+ ")) for line in lines)
    return Split(train, held_out, tuple(line.startswith("+ ") for line in lines))


def check(split: Split, kinds: Iterable[str] | None = None) -> None:
    """Raises `DataError` where the split breaks a promise. `kinds` limits the costly comparison to some input types."""
    by_kind: dict[str, list[Program]] = defaultdict(list)
    for program in (*split.train, *split.held_out):
        by_kind[program.kind].append(program)
    for kind, programs in by_kind.items():
        ids = _Ids()
        rows = np.stack([ids.row(map(p.run, probes(kind))) for p in programs])
        for i in range(1, len(rows)):
            agree = (rows[:i] == rows[i]).sum(1)
            if agree.max() >= AGREE:
                raise DataError(
                    f"split: `{programs[i].instruction}` behaves as `{programs[agree.argmax()].instruction}`"
                )
    pairs = {pair for p in split.train for pair in p.pairs}
    names = {s.name for p in split.train for s in p.steps}
    for program, new in zip(split.held_out, split.held_out_new_pair, strict=True):
        if any(s.name not in names for s in program.steps):
            raise DataError(f"split: `{program.instruction}` has an operation that training lacks")
        if new == pairs.issuperset(program.pairs):
            raise DataError(f"split: `{program.instruction}` is marked wrongly for new operation pairs")
    hits = collisions(split.held_out, split.train, kinds)
    if hits:
        program, pipeline = min(hits, key=lambda hit: (hit[0].instruction, hit[1]))
        raise DataError(f"split: `{program.instruction}` behaves as the training pipeline `{pipeline}` does")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the train/held-out split of the strings programs, or verify it.")
    parser.add_argument("--check", action="store_true", help="verify the stored lists and change nothing")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the draw (default {SEED})")
    args = parser.parse_args()
    if not args.check:
        save(grow(build(args.seed), args.seed))
        load_split.cache_clear()
    split = load_split()
    check(split)
    print(f"{len(split.train)} training and {len(split.held_out)} held-out programs, "
          f"{sum(split.held_out_new_pair)} of them with a new operation pair: all promises hold")  # fmt: skip


if __name__ == "__main__":
    main()
