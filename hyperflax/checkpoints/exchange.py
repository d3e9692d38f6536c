"""An adapter and the base model that it leaves with or arrives at.

>>> base = read_model("flan-t5-small")
>>> adapter = with_base(read_peft("their_adapter"), base)      # now it names its base, which it fits
>>> write_merged("whole_model", adapter, base)
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from hyperflax.adapters.algebra import merge
from hyperflax.adapters.kinds import check_spec
from hyperflax.checkpoints.artefacts import Adapter, check_base
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import Model, write_model


def with_base(adapter: Adapter, base: Model) -> Adapter:
    """Returns the adapter with the base model's fingerprint in its metadata.

    Raises:
      AdapterError: it names another base model (both fingerprints are told), or does not fit this one's shapes.
    """
    found = fingerprint(base.params)
    check_base(adapter, found, allow_unknown=True)
    check_spec(adapter.spec, base.config)
    return dataclasses.replace(adapter, metadata=dataclasses.replace(adapter.metadata, base_fingerprint=found))


def write_merged(
    directory: pathlib.Path | str,
    adapter: Adapter,
    base: Model,
    *,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes the base model with the adapter in its weights, in Hugging Face's form.

    `progress` is called with the number of bytes written, weight by weight.

    Raises:
      AdapterError: a kind that is no change of weights, or an adapter of another base model.
      CheckpointError: the directory may not be replaced.
    """
    merged = merge(base.params, with_base(adapter, base).tree, adapter.spec)
    write_model(directory, dataclasses.replace(base, params=merged), "huggingface", progress=progress)
