"""What T5X trained, as a model directory. Needs neither T5X nor seqio.

T5X's checkpoints of a hypermodel have two branches: `base`, the frozen T5, and `hypernetwork`.

>>> export("runs/t5x", config, "model")        # config: the HypermodelConfig of the run
>>> hyperflax.load("model").adapt(examples)
"""

from __future__ import annotations

import pathlib
from typing import Any

from hyperflax.checkpoints.orbax_form import find_orbax, read_orbax
from hyperflax.checkpoints.shapes import check_shapes
from hyperflax.checkpoints.t5x import read_t5x_checkpoint
from hyperflax.errors import CheckpointError
from hyperflax.hypermodel import Hypermodel, HypermodelConfig
from hyperflax.types import PyTree

BASE, HYPERNETWORK = "base", "hypernetwork"


def read_hypermodel(run: pathlib.Path | str, *, step: int | None = None) -> tuple[PyTree, PyTree]:
    """Returns the parameters of base and hypernetwork.

    Args:
      run: MODEL_DIR of the run, or one of its checkpoints, in Orbax's form or the legacy one.
      step: which one of a run's checkpoints; the latest by default.

    Raises:
      CheckpointError: no checkpoint of a hypermodel.
    """
    read = read_t5x_checkpoint if find_orbax(run, step) is None else read_orbax
    params = read(run, step=step)
    if set(params) != {BASE, HYPERNETWORK}:
        raise CheckpointError(f"{run}: expected the branches '{BASE}' and '{HYPERNETWORK}', got {sorted(params)}")
    return params[BASE], params[HYPERNETWORK]


def export(
    run: pathlib.Path | str,
    config: HypermodelConfig,
    directory: pathlib.Path | str,
    *,
    step: int | None = None,
    name: str = "hypermodel",
    **options: Any,
) -> None:
    """Writes a model directory, which `hyperflax.load` and every command take.

    Args:
      run, step: see `read_hypermodel`.
      config: of the model that was trained.
      directory: where to.
      name: of the model.
      options: of `Hypermodel.save`.

    Raises:
      CheckpointError: no checkpoint of a hypermodel, or one of another shape than `config`; lists every leaf.
    """
    base, hypernetwork = read_hypermodel(run, step=step)
    check_shapes(base, config.base)
    model = Hypermodel(config, base, hypernetwork, name=name)
    model.check_hypernetwork(str(run))
    model.save(directory, **options)
