"""A conversion's check: what was read and what was written, run on the same random tokens.

What was read is run first, and only what it computed is kept: the two models are never in memory together.

>>> expected = behaviour(source)
>>> write_model("for_t5x", source, "t5x")
>>> certify(expected, "for_t5x").max_error
0.0
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from hyperflax.checkpoints.forms import Form, Model, read_model
from hyperflax.checkpoints.parity import Certificate, compare, random_tokens, trace
from hyperflax.errors import CheckpointError
from hyperflax.json_files import write_json
from hyperflax.types import T5Config
from hyperflax.versions import versions

CERTIFICATE = "parity.json"


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """What a model computes, without the model.

    Attributes:
      form: the form it was in.
      config: its shape.
      trace: by name, see `parity.trace`.
    """

    form: Form
    config: T5Config
    trace: Mapping[str, np.ndarray]


def behaviour(model: Model) -> Behaviour:
    """Runs a model on random tokens."""
    return Behaviour(model.form, model.config, trace(model.params, model.config, *random_tokens(model.config)))


def certify(
    expected: Behaviour, directory: pathlib.Path | str, *, progress: Callable[[int], None] = lambda nbytes: None
) -> Certificate:
    """Compares what a model computed with what was written to a directory, and writes parity.json there.

    Args:
      expected: of the model that was written. What is stored in a narrower dtype was read in that dtype.
      directory: where it was written.
      progress: called with the number of bytes read again, array by array.

    Raises:
      CheckpointError: they differ by more than is allowed; the certificate is written all the same.
    """
    written = read_model(directory, progress=progress)
    config = written.config
    if written.form in ("t5x", "orbax"):  # there the activations stand in the user's gin file
        config = config.replace(mlp_activations=expected.config.mlp_activations)
    found = trace(written.params, config, *random_tokens(expected.config))
    certificate = compare(expected.trace, found)
    file = pathlib.Path(directory) / CERTIFICATE
    content = {"source": expected.form, "result": written.form, **certificate.to_json(), "versions": versions()}
    write_json(file, content)
    if not certificate.passed:
        raise CheckpointError(
            f"{file}: the model written is not the one read: logits differ by {certificate.max_error:.1e} of their "
            f"largest (allowed: {certificate.allowed:.0e}), greedy tokens "
            f"{'equal' if certificate.greedy_equal else 'differ'}"
        )
    return certificate
