"""A json document beside a safetensors tree, each checked against the other.

Reading them runs no code: json with a fixed schema, and safetensors. What was put together from two others is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from hyperflax import configs
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location, fetched, locate
from hyperflax.checkpoints.fingerprint import PATTERN, fingerprint
from hyperflax.checkpoints.peft_content import CONFIG as PEFT_CONFIG
from hyperflax.checkpoints.tensors import StorageDtype, load_tree, rounded, save_tree
from hyperflax.errors import AdapterError, CheckpointError, ConfigError
from hyperflax.files import atomic_directory
from hyperflax.json_files import read_schema, write_json
from hyperflax.types import PyTree

Fingerprint = Annotated[str, msgspec.Meta(pattern=PATTERN)]
Schema = TypeVar("Schema")


@dataclasses.dataclass(frozen=True)
class AdapterForm:
    """Adapters on the disk: `{stem}.json`, with the fields of the dataclass `metadata`, beside `{stem}.safetensors`."""

    stem: str
    format: str
    version: int
    metadata: type

    @property
    def files(self) -> tuple[str, str]:
        """Names of the document and of the tensors."""
        return f"{self.stem}.json", f"{self.stem}.safetensors"

    @functools.cached_property
    def schema(self) -> type:
        """Of the document: no field may be absent. `fingerprint` is that of the tree as it is loaded."""
        fields = typing.get_type_hints(self.metadata, include_extras=True)
        fields |= {"format": str, "schema_version": int, "fingerprint": Fingerprint, "spec": dict[str, Any]}
        return dataclasses.make_dataclass(self.metadata.__name__, fields.items(), frozen=True)

    def write(
        self,
        directory: Location | str,
        adapters: PyTree,
        spec: AdapterSpec,
        metadata: Any,
        *,
        dtype: StorageDtype | None,
        overwrite: bool,
        beside_others: bool = False,
    ) -> None:
        """Writes adapters that fit the spec; see `Adapter.save`."""
        name, weights = self.files
        where = f"{directory}: metadata"
        try:
            origin = configs.to_json(metadata)
        except TypeError as error:
            raise CheckpointError(f"{where}: {error}") from error
        document = {
            "format": self.format,
            "schema_version": self.version,
            **origin,
            "fingerprint": fingerprint(rounded(adapters, dtype)),
            "spec": spec.to_json(),
        }
        checked(self.schema, document, where)
        whole = atomic_directory(directory, overwrite=overwrite, owned=self.files, marker=name)
        with contextlib.nullcontext(locate(directory)) if beside_others else whole as folder:
            save_tree(folder / weights, adapters, dtype=dtype)
            write_json(folder / name, document)

    def read(self, directory: Location | str, check: Callable[..., None]) -> tuple[PyTree, AdapterSpec, Any]:
        """Returns tree, spec and metadata, of which `check(tree, spec, metadata, file)` is to raise what is wrong."""
        name, weights = self.files
        place = locate(directory)
        if (place / PEFT_CONFIG).is_file() and not (place / name).exists():
            raise CheckpointError(
                f"{directory}: expected {name}, found an adapter of PEFT; `hyperflax import` reads it"
            )
        with fetched(place, name, wanted=self.files.__contains__) as folder:
            spec, metadata, expected = self.read_document(folder)
            tree = load_tree(folder / weights)
        try:
            check(tree, spec, metadata, folder / weights)
        except AdapterError as error:
            raise CheckpointError(f"{folder / weights}: does not fit the spec in {name}: {error}") from error
        check_fingerprint(folder / weights, tree, expected, name)
        return tree, spec, metadata

    def read_document(self, folder: pathlib.Path) -> tuple[AdapterSpec, Any, str]:
        """Returns spec and metadata of the adapters in a folder, and the fingerprint that their tensors should have."""
        file = folder / self.files[0]
        content: Any = read_schema(file, self.schema, file_format=self.format, version=self.version)
        metadata = self.metadata(**{f.name: getattr(content, f.name) for f in dataclasses.fields(self.metadata)})
        return spec_from(content.spec, file), metadata, content.fingerprint


def checked(schema: type[Schema], data: Any, where: str) -> Schema:
    """Returns a part of a document as `schema`; CheckpointError naming the key where it breaks that."""
    try:
        return configs.from_json(schema, data, where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def spec_from(data: dict[str, Any], file: pathlib.Path) -> AdapterSpec:
    """The spec in a json file; CheckpointError naming the file and the entry if it is none."""
    try:
        return AdapterSpec.from_json(data)
    except (AdapterError, ConfigError) as error:
        raise CheckpointError(f"{file}: key 'spec': {error}") from error


def check_fingerprint(file: pathlib.Path, tree: PyTree, expected: str, document: str) -> None:
    """Raises CheckpointError naming both fingerprints if `tree` is not the one that `document` was written with."""
    found = fingerprint(tree)
    if found != expected:
        raise CheckpointError(
            f"{file}: holds other values than {document} was written with: expected {expected}, found {found}"
        )
