"""Examples of a program: `(input, target)` pairs that show what it does.

>>> from hyperflax_tasks.strings.programs import parse
>>> make_examples(parse("email | before \\"@\\" | upper"), seed=0, n=2)  # doctest: +SKIP
[('ann.lee@web.de', 'ANN.LEE'), ...]
"""

from __future__ import annotations

from hyperflax.errors import DataError

from .inputs import pool
from .lexicon import Draw
from .programs import Program

Example = tuple[str, str]


def make_examples(program: Program, seed: int | str, n: int, inputs: str = "train") -> list[Example]:
    """`n` examples of a program with different inputs, pure in the arguments.

    An example that shows nothing is left out: an output equal to its input or empty. Outputs differ from each other as
    long as the program has that many; repeated ones come last.

    Args:
      program: what to show.
      seed: any int or string.
      n: how many examples.
      inputs: the pool the inputs come from, `train` or `eval` (strings that no training example holds).

    Raises:
      DataError: the pool holds fewer than `n` examples that show something.
    """
    texts = pool(program.kind, inputs)
    draw = Draw(f"{program.instruction}\n{seed}")
    chosen: list[Example] = []
    repeated: list[Example] = []
    outputs: set[str] = set()
    used: set[int] = set()
    for _ in range(4 * n + 40):
        i = draw.below(len(texts))
        if i in used:
            continue
        used.add(i)
        text = texts[i]
        out = program.try_run(text)
        if out is None or out == text:
            continue
        if out in outputs:
            repeated.append((text, out))
        else:
            outputs.add(out)
            chosen.append((text, out))
            if len(chosen) == n:
                return chosen
    chosen += repeated[: n - len(chosen)]
    if len(chosen) < n:
        raise DataError(f"program `{program.instruction}`: {n} examples wanted, {len(chosen)} found in pool '{inputs}'")
    return chosen
