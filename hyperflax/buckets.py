"""Files in buckets, `gs://` and `s3://`: the little of `pathlib.Path` that readers and writers ask for, by TensorStore.

All names below an address are listed once, when the first is asked for, and again after a change made through it;
contents are read when their turn comes. An object appears under its name when all of it has arrived, or not at all.
Credentials, endpoints and how many requests run at a time are TensorStore's business, with its own environment
variables (https://google.github.io/tensorstore/kvstore/gcs, .../kvstore/s3); public buckets need none. AWS_ENDPOINT_URL
names another server of Amazon's protocol. Neither TensorFlow nor a cloud's own package takes part.

>>> folder = locate("gs://t5-data/pretrained_models/t5x/t5_1_1_small/checkpoint_1000000")
>>> (folder / "checkpoint").is_file()
True
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from hyperflax.errors import CheckpointError, ConfigError

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

        scheme, _, address = self.url.partition("://")
        bucket, _, path = address.partition("/")
        # In parts: of a whole address TensorStore would refuse `#` and take `%3D` for another character.
        spec = {"driver": {"gs": "gcs", "s3": "s3"}[scheme], "bucket": bucket, "path": path}
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        if scheme == "s3" and endpoint:  # Amazon's tools find other servers of the protocol so
            spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
        try:
            return ts.KvStore.open(spec).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self.url}: cannot be opened, {error}") from error

    @functools.cached_property
    def objects(self) -> frozenset[str]:
        """The names of all objects, without the address.

        Empty ones that end with a slash, as a cloud's console makes them for a folder, stand for no file. Nor does any
        other name with an empty part: it would be taken for the folder that it is in.
        """
        try:
            names = [key.decode() for key in self.store.list().result()]
            return frozenset(name for name in names if all(name.split("/")))
        except (ValueError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.url}: cannot be listed, {error}") from error

    def changed(self) -> None:
        """Forgets the names."""
        for name in ("objects", "folders"):
            self.__dict__.pop(name, None)

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

    def read(self, start: int = 0, stop: int | None = None) -> bytes | None:
        """Returns an object's content, or a part of it; None where there is no such object.

        Raises:
          CheckpointError: nobody answers, or not to us.
        """
        part = slice(start, stop) if start or stop is not None else None
        try:
            found = self.bucket.store.read(self.relative, byte_range=part).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self}: cannot be read, {error}") from error
        return found.value if found.state == "value" else None

    def read_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """Returns an object's content, or a part of it. Raises CheckpointError where it cannot be had."""
        content = self.read(start, stop)
        if content is None:
            raise CheckpointError(f"{self}: expected a file, found nothing")
        return content

    def write_bytes(self, content: bytes) -> None:
        """Makes or replaces an object. Raises CheckpointError where it cannot be written."""
        self._change(lambda: self.bucket.store.write(self.relative, content))

    def unlink(self) -> None:
        """Removes an object, if there is one. Raises CheckpointError where that cannot be done."""
        self._change(lambda: self.bucket.store.write(self.relative, None))

    def rmtree(self) -> None:
        """Removes all objects below this place. Raises CheckpointError where that cannot be done."""
        import tensorstore as ts

        # "0" is the character behind "/".
        below = (
            ts.KvStore.KeyRange(f"{self.relative}/", f"{self.relative}0") if self.relative else ts.KvStore.KeyRange()
        )
        self._change(lambda: self.bucket.store.delete_range(below))

    def _change(self, start: Callable[[], Any]) -> None:
        try:
            start().result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self}: cannot be written, {error}") from error
        self.bucket.changed()


Location: TypeAlias = pathlib.Path | BucketPath


def locate(path: Location | str) -> Location:
    """Returns a local path, or one in a bucket where `path` is such an address.

    A home, `~`, is found here: shells leave it as it is within a word, as in --gin.MODEL_DIR=~/runs/x.

    Raises:
      CheckpointError: an address of another kind.
      ConfigError: no path at all, such as a number that a gin file has without quotes.
    """
    if isinstance(path, BucketPath):
        return path
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{path!r}: expected a path, which is a string (a number wants quotes)")
    match = _ADDRESS.fullmatch(str(path))
    if match is not None:
        inside = (match[3] or "").strip("/")
        return BucketPath(Bucket(f"{match[1]}://{match[2]}/{inside}/" if inside else f"{match[1]}://{match[2]}/"))
    if "://" in str(path):
        raise CheckpointError(f"{path}: expected a local path, gs://BUCKET/... or s3://BUCKET/...")
    return pathlib.Path(os.path.expanduser(path))


def locate_file(path: Location | str) -> Location:
    """Returns the place of one file: as `locate`, without a look at what else lies below an address of this name."""
    found = locate(path)
    if isinstance(found, pathlib.Path) or found.relative:
        return found
    folder, _, name = str(found).rpartition("/")
    return locate(folder) / name


@contextlib.contextmanager
def fetched(
    path: Location | str, marker: str, *, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[pathlib.Path]:
    """Yields a directory on this machine: a local one as it is, one of a bucket as a copy that goes on leaving.

    What is copied are the files directly in it: below the address there may be a whole run.

    Args:
      path: the directory.
      marker: the file without which nobody takes a directory of this kind for one; of a bucket it is read first.
      wanted: whether a file of this name is copied.

    Raises:
      CheckpointError: there is no marker in the bucket, or an object cannot be read or has a name that leads out of the
        directory.
    """
    place = locate(path)
    if isinstance(place, pathlib.Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="hyperflax-") as folder:
        local = pathlib.Path(folder, *str(place).split("/")[2:])  # so that an error tells of which
        local.mkdir(parents=True)
        (local / marker).write_bytes((place / marker).read_bytes())
        for file in place.iterdir():
            if not file.is_file() or file.name == marker or not wanted(file.name):
                continue
            if file.name in ("", ".", "..") or "\0" in file.name:
                raise CheckpointError(f"{file}: is no name of a file")
            (local / file.name).write_bytes(file.read_bytes())
        yield local


def kvstore(directory: Location) -> dict[str, Any]:
    """Returns TensorStore's name of a directory."""
    if isinstance(directory, BucketPath):
        base = directory.bucket.store.spec().to_json()
        return {**base, "path": f"{base.get('path', '')}{directory.relative}/" if directory.relative else base["path"]}
    return {"driver": "file", "path": f"{directory.absolute()}/"}
