"""Adapters as they are downloaded: a zip of the directory that hyperflax reads, or of the one that PEFT does.

>>> data = packed(service, made.id, "native")
>>> fits_peft(model.config.spec, model.config.base.num_decoder_layers)
True
"""

from __future__ import annotations

import functools
import io
import zipfile
from typing import Any, Literal

import numpy as np

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, check_base
from hyperflax.checkpoints.model_directory import collect_files
from hyperflax.checkpoints.peft import as_peft, write_peft
from hyperflax.errors import AdapterError
from hyperflax.serving.service import Service
from hyperflax.serving.store import NotSaved


def packed(service: Service, key: str, form: Literal["native", "peft"]) -> bytes:
    """Returns a zip of the adapter's directory in a form.

    Raises:
      UnknownAdapter, CheckpointError: as `AdapterStore.load` does.
      AdapterError: PEFT cannot express it; names the site and the reason. Or it was made for another base model.
      NotSaved: the disk has no room for PEFT's files, of which the zip is made.
    """
    if form == "native":
        files = service.store.files(key)
    else:
        adapter, layers = service.store.load(key), service.model.config.base.num_decoder_layers
        check_base(adapter, service.model.base_fingerprint)  # the depth is this base's
        try:
            files = collect_files(lambda folder: write_peft(folder, adapter, decoder_layers=layers))
        except OSError as error:
            raise NotSaved(f"adapter {key}: not packed for PEFT: {error}") from error
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"adapter-{key[:8]}/{name}", content)
    return data.getvalue()


@functools.lru_cache(maxsize=1)
def fits_peft(spec: AdapterSpec, decoder_layers: int) -> bool:
    """Returns whether PEFT can express what a hypermodel makes: all adapters have its spec, so zeros tell for all."""
    zeros: dict[str, Any] = {leaf.path: np.zeros(leaf.shape, np.float32) for leaf in spec.leaves}
    adapter = Adapter(spec.unflatten(zeros), spec, AdapterMetadata(base_fingerprint=None))
    try:
        as_peft(adapter, decoder_layers=decoder_layers)
    except AdapterError:  # PEFT has none like it
        return False
    return True
