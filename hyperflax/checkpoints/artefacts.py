"""The adapter directory: what `hyperflax adapt` leaves behind, and what `predict` takes.

    adapter.json          which base model, which hypermodel, which examples, how made; the spec
    adapter.safetensors   the leaves, named by their paths in the `adapters` collection

Both are checked against each other, see `documents`. The model directory is in `model_directory.py`.

>>> Adapter(tree, spec, AdapterMetadata(base_fingerprint=fingerprint(base), refine_steps=10)).save("dates")
>>> adapter = load_adapter("dates")
>>> check_base(adapter, fingerprint(base))
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

import msgspec

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location
from hyperflax.checkpoints.documents import AdapterForm, Fingerprint
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.errors import AdapterError
from hyperflax.types import PyTree
from hyperflax.versions import versions

Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclasses.dataclass(frozen=True)
class AdapterMetadata:
    """Where an adapter comes from.

    Attributes:
      base_fingerprint: of the base model that it belongs to; None if that is unknown (an import from elsewhere).
      hypermodel: `ModelParts.id` of the hypermodel that generated it; None for an adapter from elsewhere.
      support_hash: of the examples that it was made from, see `support_hash`; None if there were none.
      refine_steps: gradient steps on those examples after it was generated.
      created_with: the command.
      versions: of the software that made it.
      provenance: anything else worth keeping, as json.
    """

    base_fingerprint: Fingerprint | None
    hypermodel: str | None = None
    support_hash: Fingerprint | None = None
    refine_steps: Count = 0
    created_with: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


_FORM = AdapterForm("adapter", "hyperflax-adapter", 1, AdapterMetadata)
ADAPTER_FILES = _FORM.files


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter for one task.

    Attributes:
      tree: what layers read, of one task, unrolled layers.
      spec: that the tree fits.
      metadata: where it comes from.
    """

    tree: PyTree
    spec: AdapterSpec
    metadata: AdapterMetadata

    def save(
        self,
        directory: Location | str,
        *,
        dtype: StorageDtype | None = None,
        overwrite: bool = False,
        beside_others: bool = False,
    ) -> None:
        """Writes an adapter directory; an interruption leaves nothing that looks like one.

        Args:
          directory: where to. It must not exist, or be empty, unless `overwrite` or `beside_others`.
          dtype: "bfloat16" halves the file and rounds the values.
          overwrite: replace an adapter directory that is there; one that holds other files as well is left alone.
          beside_others: write into a directory that is there and keep its other files: the folder of a run. Interrupted
            between the two files it leaves an adapter that `load_adapter` refuses.

        Raises:
          AdapterError: the tree does not fit the spec.
          CheckpointError: the directory may not be replaced, or the metadata are not what the schema asks for.
        """
        self.spec.validate(self.tree)
        told = self.tree, self.spec, self.metadata
        _FORM.write(directory, *told, dtype=dtype, overwrite=overwrite, beside_others=beside_others)


def load_adapter(directory: Location | str) -> Adapter:
    """Reads what `Adapter.save` wrote, here or in a bucket.

    >>> model.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")]).save("names")
    >>> model.predict(["grace hopper"], hyperflax.load_adapter("names"))
    ['Hopper, G.']

    Returns:
      The adapter, its tree nested dicts of numpy arrays.

    Raises:
      CheckpointError: a file is missing, damaged, from elsewhere, or does not belong to the other; names file and
        key or leaf.
    """
    return Adapter(*_FORM.read(directory, lambda tree, spec, metadata, file: spec.validate(tree)))


def read_origin(directory: pathlib.Path) -> Adapter:
    """Reads what an adapter directory on this machine says of its adapter, and none of its values: the tree is empty.

    Raises:
      CheckpointError: the document is missing, damaged or from elsewhere; names file and key.
    """
    spec, metadata, _ = _FORM.read_document(directory)
    return Adapter({}, spec, metadata)


def check_base(adapter: Adapter, base_fingerprint: str, *, allow_unknown: bool = False) -> None:
    """Returns nothing if the adapter was made for the base model with this fingerprint.

    Args:
      adapter: as loaded.
      base_fingerprint: of the model that it is about to be used with.
      allow_unknown: accept an adapter that names no base model.

    Raises:
      AdapterError: it was made for another base model, or for an unknown one; names both fingerprints.
    """
    made_for = adapter.metadata.base_fingerprint
    if made_for == base_fingerprint or (made_for is None and allow_unknown):
        return
    told = f"was made for the base model {made_for}" if made_for else "does not say which base model it was made for"
    raise AdapterError(f"the adapter {told}; this base model is {base_fingerprint}")
