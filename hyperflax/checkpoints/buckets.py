"""Checkpoints in buckets, `gs://` and `s3://`: the little of `pathlib.Path` that their readers ask for, by TensorStore.

All names below an address are listed once, when the first is asked for; contents are read when their turn comes.
Credentials, endpoints and how many requests run at a time are TensorStore's business, with its own environment
variables (https://google.github.io/tensorstore/kvstore/gcs, .../kvstore/s3); public buckets need none. AWS_ENDPOINT_URL
names another server of Amazon's protocol. Neither TensorFlow nor a cloud's own package takes part.

>>> folder = locate("gs://t5-data/pretrained_models/t5x/t5_1_1_small/checkpoint_1000000")
>>> (folder / "checkpoint").is_file()
True
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from hyperflax import files
from hyperflax.errors import CheckpointError

# pathlib has made one slash of two where somebody has put an address into it.
_ADDRESS = re.compile(r"(gs|s3):/{1,2}([a-z0-9][a-z0-9._-]+)(?:/(.*))?")


class Bucket:
    """The objects below one address, by name."""

    def __init__(self, url: str):
        self.url = url  # ends with a slash

    @functools.cached_property
    def store(self) -> Any:
        """TensorStore's handle."""
        import tensorstore as ts

        endpoint, spec = os.environ.get("AWS_ENDPOINT_URL"), ts.KvStore.Spec(self.url)
        if self.url.startswith("s3:") and endpoint:  # Amazon's tools find other servers of the protocol so
            spec = {**spec.to_json(), "endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
        try:
            return ts.KvStore.open(spec).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self.url}: cannot be opened, {error}") from error

    @functools.cached_property
    def objects(self) -> frozenset[str]:
        """The names of all objects, without the address."""
        try:
            return frozenset(key.decode() for key in self.store.list().result())
        except (ValueError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.url}: cannot be listed, {error}") from error

    @functools.cached_property
    def folders(self) -> dict[str, set[str]]:
        """The names directly below every folder; the address itself is ''."""
        found: dict[str, set[str]] = {}
        for name in self.objects:
            parts = name.split("/")
            for depth, part in enumerate(parts):
                found.setdefault("/".join(parts[:depth]), set()).add(part)
        return found


class BucketPath:
    """A place below an address; the methods are pathlib's."""

    def __init__(self, bucket: Bucket, relative: str = ""):
        self.bucket = bucket
        self.relative = relative

    def __str__(self) -> str:
        return f"{self.bucket.url}{self.relative}".rstrip("/")

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(self.bucket, f"{self.relative}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> BucketPath:
        return BucketPath(self.bucket, self.relative.rpartition("/")[0])

    def is_file(self) -> bool:
        return self.relative in self.bucket.objects

    def is_dir(self) -> bool:
        return self.relative in self.bucket.folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[BucketPath]:
        return (self / name for name in sorted(self.bucket.folders.get(self.relative, ())))

    def read_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """Returns an object's content, or a part of it. Raises CheckpointError where it cannot be had."""
        part = slice(start, stop) if start or stop is not None else None
        try:
            found = self.bucket.store.read(self.relative, byte_range=part).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self}: cannot be read, {error}") from error
        if found.state != "value":
            raise CheckpointError(f"{self}: expected a file, found nothing")
        return found.value


Location: TypeAlias = pathlib.Path | BucketPath


def locate(path: Location | str) -> Location:
    """Returns a local path, or one in a bucket where `path` is such an address.

    Raises:
      CheckpointError: an address of another kind.
    """
    if isinstance(path, BucketPath):
        return path
    match = _ADDRESS.fullmatch(str(path))
    if match is not None:
        inside = (match[3] or "").strip("/")
        return BucketPath(Bucket(f"{match[1]}://{match[2]}/{inside}/" if inside else f"{match[1]}://{match[2]}/"))
    if "://" in str(path):
        raise CheckpointError(f"{path}: expected a local path, gs://BUCKET/... or s3://BUCKET/...")
    return pathlib.Path(path)


def on_this_machine(location: Location) -> pathlib.Path:
    """Returns a local path as it is. Raises CheckpointError for a bucket: most forms are not read there."""
    if isinstance(location, BucketPath):
        raise CheckpointError(
            f"{location}: only T5X's checkpoints and Hugging Face's models are read from buckets: copy it first"
        )
    return location


def kvstore(directory: Location) -> dict[str, Any]:
    """Returns TensorStore's name of a directory."""
    if isinstance(directory, BucketPath):
        base = directory.bucket.store.spec().to_json()
        return {**base, "path": f"{base.get('path', '')}{directory.relative}/" if directory.relative else base["path"]}
    return {"driver": "file", "path": f"{directory.absolute()}/"}


def read_bytes(file: Location) -> bytes:
    """Returns a file's content. Raises CheckpointError where it cannot be had."""
    return file.read_bytes() if isinstance(file, BucketPath) else files.read_bytes(file)


def read_json(file: Location) -> dict[str, Any]:
    """Returns the json object in a file. Raises CheckpointError as `files.read_json` does."""
    return files.parse_json(file.read_bytes(), file) if isinstance(file, BucketPath) else files.read_json(file)
