"""What a different adapter in every row costs: tokens per second beside the bare model's, in one run.

    python -m benchmarks.many_adapters [--rows 64] [--source 64] [--target 32] [--repeats 5] [--only CASE...]

The shape is T5.1.1-small's, the weights are random, decoding is greedy and no token ends a row. `bare` is plain
decoding of one batch without any adapter. The other cases go through the serving engine with all rows at once, and so
pay for admission as well: `engine` with no adapter in any row, `lora8` with another rank-8 LoRA on all queries and
values in every row, `lora16_all` with rank 16 on every projection, `prefix16` with 16 prefix positions. `switching` is
`lora8` with 1,000 adapters of which each request takes the next one, and slots for 256. Cases alternate; the table
gives the median and the spread, and each case's share of the bare model's throughput, pair by pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import SMALL, alternate
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.models.decoding import decode
from hyperflax.models.t5 import T5
from hyperflax.serving.engine import Engine, EngineConfig
from hyperflax.types import PyTree

KINDS: dict[str, KindConfig] = {
    "engine": LoRA(rank=1, layers=(0,)),
    "lora8": LoRA(rank=8),
    "lora16_all": LoRA(rank=16, sites=("*",)),
    "prefix16": Prefix(length=16),
    "switching": LoRA(rank=8),
}
CASES = ("bare", *KINDS)
NEVER = -1


def main(argv: list[str] | None = None) -> None:
    """Prints a table and, at the end, the results as json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--source", type=int, default=64, help="input tokens of every row")
    parser.add_argument("--target", type=int, default=32, help="tokens decoded in every row")
    parser.add_argument("--steps", type=int, default=16, help="tokens between two looks of the engine")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each case")
    parser.add_argument("--only", nargs="*", choices=CASES[1:], default=CASES[1:], help="leave out the others")
    args = parser.parse_args(argv)

    model = T5(SMALL)
    sources = np.random.default_rng(0).integers(2, 32000, (args.rows, args.source)).astype(np.int32)
    tokens = jnp.asarray(sources)
    params = jax.jit(model.init)(jax.random.key(0), tokens[:1], tokens[:1])["params"]
    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: decode(model, params, tokens, max_length=args.target, eos_id=NEVER)
    }
    for case in args.only:
        calls[case] = served(case, model, params, sources, args)
    seconds = {name: [wall for wall, _ in times] for name, times in alternate(calls, args.repeats).items()}
    decoded = args.rows * args.target
    results = {}
    for case, times in seconds.items():
        shares = [bare / own for bare, own in zip(seconds["bare"], times, strict=True)]
        results[case] = {
            "tokens_per_second": decoded / statistics.median(times),
            "share_of_bare": statistics.median(shares),
            "share_lowest": min(shares),
            "share_highest": max(shares),
        }
        print(
            f"{case:11s} {results[case]['tokens_per_second']:7.0f} tokens/s   "
            f"{statistics.median(shares):.2f} of bare [{min(shares):.2f}, {max(shares):.2f}]"
        )
    print(json.dumps({"device": jax.devices()[0].device_kind, "arguments": vars(args), "results": results}))


def served(case: str, model: T5, params: PyTree, sources: np.ndarray, args: argparse.Namespace) -> Callable[[], object]:
    """Returns a call that sends all rows through an engine, each with its own adapter."""
    spec = build_spec(KINDS[case], SMALL)
    adapters = {"engine": 0, "switching": 1000}.get(case, args.rows)
    sizes = {"sources": (args.source,), "max_length": args.target, "rows": args.rows, "steps": args.steps}
    engine = Engine(model, params, spec, EngineConfig(**sizes, resident=min(max(adapters, 1), 256), eos_id=NEVER))
    rng = np.random.default_rng(1)
    for key in range(adapters):
        tree = {leaf.path: jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32)) for leaf in spec.leaves}
        engine.add(key, spec.unflatten(tree), spec)
    engine.compile()
    upcoming = iter(range(10**9))

    def call() -> None:
        for row in sources:
            engine.submit(row, next(upcoming) % adapters if adapters else None)
        engine.run()

    return call


if __name__ == "__main__":
    main()
