"""Adapters in PEFT's form: a directory that `PeftModel.from_pretrained` loads onto a T5, and back.

    adapter_config.json           PEFT's settings of the method
    adapter_model.safetensors     the weights
    hyperflax.json                ours, ignored by PEFT: the spec, the base's fingerprint, the adapter's own, and where
                                  it was trained

LoRA and soft prompts go both ways (`peft_lora.py`, `peft_prompt.py`), prefixes where PEFT can express them
(`peft_prefix.py`). What it cannot express is refused with the place and the reason; nothing is dropped. An adapter that
comes back unchanged is the one that went out, with its spec and its base model; one from elsewhere has no known base
and says so.

>>> write_peft("for_peft", load_adapter("names_adapter"))
>>> adapter = read_peft("for_peft")
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import groups, kind_of, refuse
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location, fetched
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, Count
from hyperflax.checkpoints.documents import Fingerprint, spec_from
from hyperflax.checkpoints.fingerprint import as_numpy, fingerprint
from hyperflax.checkpoints.peft_content import CONFIG, TASK, Content
from hyperflax.checkpoints.peft_lora import export_lora, import_lora
from hyperflax.checkpoints.peft_prefix import export_prefix, import_prefix
from hyperflax.checkpoints.peft_prompt import export_prompt, import_prompt
from hyperflax.checkpoints.safetensors_files import Tensor, open_tensors, write_tensors
from hyperflax.errors import AdapterError, CheckpointError
from hyperflax.files import atomic_directory
from hyperflax.json_files import read_json, read_schema, write_json
from hyperflax.types import PyTree

WEIGHTS, ORIGIN = "adapter_model.safetensors", "hyperflax.json"
ORIGIN_FORMAT = "hyperflax-peft-origin"
ORIGIN_VERSION = 1
_KEPT = ("base_fingerprint", "hypermodel", "support_hash", "refine_steps")  # of an adapter's metadata
_PICKLE = "adapter_model.bin"

# PEFT's name of each method: our kind, the way out, the way in.
_METHODS: dict[str, tuple[type[KindConfig], Any, Any]] = {
    "LORA": (LoRA, export_lora, import_lora),
    "PREFIX_TUNING": (Prefix, export_prefix, import_prefix),
    "PROMPT_TUNING": (SoftPrompt, export_prompt, import_prompt),
}


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Schema 1 of hyperflax.json. `fingerprint` is that of the tree which the directory's weights make."""

    format: str
    schema_version: int
    fingerprint: Fingerprint
    base_fingerprint: Fingerprint | None
    hypermodel: str | None
    support_hash: Fingerprint | None
    refine_steps: Count
    spec: dict[str, Any]
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_peft(
    directory: pathlib.Path | str, adapter: Adapter, *, base_name: str | None = None, decoder_layers: int | None = None
) -> None:
    """Writes an adapter in PEFT's form.

    Args:
      directory: where to. It must not exist, or be empty.
      adapter: of one kind, as `load_adapter` gives it.
      base_name: name or path of the Hugging Face model that it belongs to, `base_model_name_or_path` for PEFT.
      decoder_layers: of the base model, every one of which must have a prefix if any has; None believes a prefix that
        was made for all layers.

    Raises:
      AdapterError: PEFT cannot express it; names the site and the reason.
      CheckpointError: the directory may not be replaced.
    """
    flat = _flat(adapter)
    content = _as_peft(adapter.spec, flat, decoder_layers)
    config = {"base_model_name_or_path": base_name, **content.settings}
    origin = {
        "format": ORIGIN_FORMAT,
        "schema_version": ORIGIN_VERSION,
        # Without masks: those that keep everything are not written, and no other ones got here.
        "fingerprint": fingerprint(trees.unflatten({leaf.path: flat[leaf.path] for leaf in adapter.spec.leaves})),
        **{name: getattr(adapter.metadata, name) for name in _KEPT},
        "spec": adapter.spec.to_json(),
    }
    if adapter.metadata.provenance:
        origin["provenance"] = adapter.metadata.provenance
    with atomic_directory(directory) as folder:
        write_tensors(folder / WEIGHTS, [_tensor(name, array) for name, array in sorted(content.weights.items())])
        write_json(folder / ORIGIN, origin)
        write_json(folder / CONFIG, config)


def require_expressible(adapter: Adapter) -> None:
    """Raises what `write_peft` raises whatever the base model: for commands to ask before they read one."""
    as_peft(adapter, decoder_layers=_decoder_layers(adapter.spec))


def as_peft(adapter: Adapter, *, decoder_layers: int | None = None) -> Content:
    """Returns what `write_peft` writes of an adapter in PEFT's own terms, without writing it.

    Args:
      adapter, decoder_layers: as in `write_peft`.

    Raises:
      AdapterError: PEFT cannot express it; names the site and the reason.

    >>> as_peft(load_adapter("names_adapter")).settings["peft_type"]
    'LORA'
    """
    return _as_peft(adapter.spec, _flat(adapter), decoder_layers)


def _as_peft(spec: AdapterSpec, flat: dict[str, np.ndarray], decoder_layers: int | None) -> Content:
    kind = _only_kind(spec)
    ways = {ours: (method, export) for method, (ours, export, _) in _METHODS.items()}
    if kind not in ways:
        raise AdapterError(f"PEFT: expected one of {', '.join(ours.kind for ours in ways)}, got {kind.kind}")
    method, export = ways[kind]
    content = export(flat, spec, decoder_layers)
    settings = {"task_type": TASK, "inference_mode": True, "peft_type": method, **content.settings}
    return dataclasses.replace(content, settings=settings)


def _decoder_layers(spec: AdapterSpec) -> int | None:
    """How many a decoder with these leaves has at least; None without any there."""
    return 1 + max((leaf.layer for leaf in spec.leaves if leaf.stack == "decoder"), default=-1) or None


def read_peft(directory: Location | str, *, decoder_layers: int | None = None) -> Adapter:
    """Reads an adapter in PEFT's form, whoever wrote it, with PEFT's own reading of its settings.

    Args:
      directory: the adapter's, here or in a bucket.
      decoder_layers: of the base model. PEFT does not store it, and a prefix needs it: hyperflax.json tells it for
        weights that are still those which were exported. Of others, None takes it from there too or, failing that,
        believes `num_layers` in adapter_config.json, which PEFT fills with the encoder's.

    Returns:
      The adapter, leaves float32. Its metadata name a base model only if hyperflax wrote the directory and nobody has
      changed the weights since.

    Raises:
      CheckpointError: a file is missing or damaged, holds a pickle, or names what hyperflax has no adapter for: another
        method, a variant of LoRA, a module that is no projection of a T5 layer. Names file and key or weight.
    """
    with fetched(directory, CONFIG, wanted=(WEIGHTS, ORIGIN, _PICKLE).__contains__) as folder:
        return _read(folder, decoder_layers)


def _read(folder: pathlib.Path, decoder_layers: int | None) -> Adapter:
    config = read_json(folder / CONFIG)
    method = config.get("peft_type")
    if not isinstance(method, str) or method not in _METHODS:
        raise CheckpointError(
            f"{folder / CONFIG}: key 'peft_type': expected one of {list(_METHODS)}, got {method!r:.100}"
        )
    if not (folder / WEIGHTS).is_file() and (folder / _PICKLE).exists():
        raise CheckpointError(
            f"{folder}: expected {WEIGHTS}, found {_PICKLE}: a pickle, which can run any code when it is opened. Where "
            "torch is installed and you trust it: PeftModel.from_pretrained(model, DIR).save_pretrained(OUT)"
        )
    with open_tensors(folder / WEIGHTS) as tensors:
        weights = {name: tensors.read(name).astype(np.float32) for name in tensors.shapes}
    provenance = {"imported_from": "PEFT", "base_model": config.get("base_model_name_or_path")}

    def read(layers: int | None) -> tuple[PyTree, AdapterSpec]:
        flat, spec = _METHODS[method][2](Content(config, weights), layers)
        tree = trees.unflatten(flat)
        spec.validate(tree)
        return tree, spec

    if (origin := _read_origin(folder)) is not None:
        own = spec_from(origin.spec, folder / ORIGIN)
        layers = _decoder_layers(own)
        tree = None
        with contextlib.suppress(AdapterError):  # other weights than were written need not make a tree of that depth
            tree, _ = read(layers)
        if tree is not None and fingerprint(tree) == origin.fingerprint:
            try:
                own.validate(tree)
            except AdapterError as error:
                raise CheckpointError(f"{folder / ORIGIN}: key 'spec': does not fit {WEIGHTS}: {error}") from error
            kept = {name: getattr(origin, name) for name in _KEPT}
            return Adapter(tree, own, AdapterMetadata(**kept, provenance={**origin.provenance, **provenance}))
        decoder_layers = decoder_layers or layers
    try:
        tree, spec = read(decoder_layers)
    except AdapterError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Adapter(tree, spec, AdapterMetadata(base_fingerprint=None, provenance=provenance))


def _read_origin(folder: pathlib.Path) -> _Origin | None:
    if not (folder / ORIGIN).exists():
        return None
    return read_schema(folder / ORIGIN, _Origin, file_format=ORIGIN_FORMAT, version=ORIGIN_VERSION)


def _flat(adapter: Adapter) -> dict[str, np.ndarray]:
    """The leaves of an adapter that fits its spec and may go to PEFT, float32 by path. Raises AdapterError."""
    adapter.spec.validate(adapter.tree)
    refuse(adapter.spec, "export to PEFT")
    return {path: as_numpy(path, leaf).astype(np.float32) for path, leaf in adapter.spec.flatten(adapter.tree).items()}


def _only_kind(spec: AdapterSpec) -> type[KindConfig]:
    """The kind of all leaves. Raises AdapterError where there are several."""
    slots = {kind_of(leaves[0]): slot for slot, leaves in groups(spec).items()}
    if len(slots) != 1:
        told = ", ".join(f"{kind.kind} at '{slot}'" for kind, slot in slots.items())
        raise AdapterError(
            f"PEFT: expected an adapter of one kind, a directory of PEFT holds no more; got {told or 'none'}"
        )
    return next(iter(slots))


def _tensor(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name, array.shape, array.dtype, lambda: array)
