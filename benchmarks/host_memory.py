"""What keeping freed memory saves: training steps of a small T5 in fresh processes, with malloc's defaults and without.

    python benchmarks/host_memory.py [--steps N] [--repeats N]

Prints seconds of user and system time and page faults of N steps, compilation not counted (glibc, CPU).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time


def measure(keep: bool, steps: int) -> dict[str, float]:
    """Runs in a fresh process: the policy comes before the first computation."""
    from hyperflax.cli.host_memory import keep_freed_memory

    if keep and not keep_freed_memory():
        raise SystemExit("this system's malloc cannot be told to keep freed memory")
    import jax
    import jax.numpy as jnp

    from hyperflax.data.batches import text_batch
    from hyperflax.models.t5 import T5
    from hyperflax.objectives.language_model import T5Objective
    from hyperflax.training.optimizers import adamw
    from hyperflax.training.state import TrainState
    from hyperflax.training.step import make_train_step
    from hyperflax.types import T5Config

    config = T5Config(
        vocab_size=384, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_encoder_layers=4, num_decoder_layers=4
    )
    batch = text_batch([([5] * 90, [6] * 30)] * 20, inputs_length=96, targets_length=32)
    objective, optimizer = T5Objective(T5(config)), adamw(1e-3)
    params = objective.init(jax.random.key(0), batch)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)

    def run(number: int) -> None:
        nonlocal state
        for _ in range(number):
            state, _ = step(state, None, batch, jax.random.key(0))
        jax.block_until_ready(state)

    run(3)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run(steps)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": time.perf_counter() - start,
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="measured steps of a run (default 12)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind, taking turns (default 3)")
    parser.add_argument("--keep", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keep is not None:
        print(json.dumps(measure(bool(arguments.keep), arguments.steps)))
        return
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for _ in range(arguments.repeats):
        for keep in (0, 1):
            command = [sys.executable, __file__, "--keep", str(keep), "--steps", str(arguments.steps)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            figures = json.loads(run.stdout)
            name = "kept" if keep else "malloc's defaults"
            print(f"{name:18}" + "  ".join(f"{key} {value:10.2f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
