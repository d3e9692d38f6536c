"""A conversion's check: what was read and what was written, run on the same random tokens.

>>> write_model("for_t5x", source, "t5x")
>>> certify(source, "for_t5x").max_error
0.0
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from hyperflax import trees
from hyperflax.checkpoints.fingerprint import as_numpy
from hyperflax.checkpoints.forms import Model, read_model
from hyperflax.checkpoints.parity import Certificate, compare, random_tokens, trace
from hyperflax.checkpoints.zarr import dtype_of
from hyperflax.errors import CheckpointError
from hyperflax.files import write_json
from hyperflax.versions import versions

CERTIFICATE = "parity.json"


def rounded_as(model: Model, dtype: str | None) -> Model:
    """Returns the model with the values that it keeps when it is stored in `dtype`: those are what a check is about."""
    if dtype is None:
        return model
    target = dtype_of(dtype)
    return dataclasses.replace(
        model, params=trees.map_with_path(lambda path, leaf: as_numpy(path, leaf).astype(target), model.params)
    )


def certify(
    source: Model, directory: pathlib.Path | str, *, progress: Callable[[int], None] = lambda nbytes: None
) -> Certificate:
    """Compares a model with what was written to a directory, and writes parity.json there.

    `progress` is called with the number of bytes read again, array by array.

    Raises:
      CheckpointError: they differ by more than is allowed; the certificate is written all the same.
    """
    written = read_model(directory, progress=progress)
    config = written.config
    if written.form in ("t5x", "orbax"):  # there the activations stand in the user's gin file
        config = config.replace(mlp_activations=source.config.mlp_activations)
    tokens = random_tokens(source.config)
    certificate = compare(trace(source.params, source.config, *tokens), trace(written.params, config, *tokens))
    file = pathlib.Path(directory) / CERTIFICATE
    content = {"source": source.form, "result": written.form, **certificate.to_json(), "versions": versions()}
    write_json(file, content)
    if not certificate.passed:
        raise CheckpointError(
            f"{file}: the model written is not the one read: logits differ by {certificate.max_error:.1e} of their "
            f"largest (allowed: {certificate.allowed:.0e}), greedy tokens "
            f"{'equal' if certificate.greedy_equal else 'differ'}"
        )
    return certificate
