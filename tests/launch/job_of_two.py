"""One of the two processes of an inference job; the second one is slower, by SECONDS a batch.

    python -m tests.launch.job_of_two INPUTS OUT PORT INDEX SECONDS

JAX waits for ten seconds at its end, in place of five minutes, until all processes have come to theirs.
"""

from __future__ import annotations

import sys
import time

import jax

from hyperflax.hypermodel import Hypermodel
from hyperflax.infer import infer
from tests.evaluation.micro import hypermodel


def main(inputs: str, out: str, port: str, index: str, seconds: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", 2, int(index), shutdown_timeout_seconds=10)
    decode = Hypermodel.decode

    def counted(*given, **options):
        print("decoding", flush=True)
        time.sleep(float(seconds) * int(index))
        return decode(*given, **options)

    Hypermodel.decode = counted
    infer(model=hypermodel(), inputs=inputs, out=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
