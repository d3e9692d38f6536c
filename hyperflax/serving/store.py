"""Adapters that a service has made, on disk: they are there again after a restart, however it came.

    FOLDER/ID/adapter.json, adapter.safetensors    as `hyperflax adapt` writes them
    FOLDER/ID/made.json                            what it was asked for, and what its estimate said

An id is a hash of the examples, of the hypermodel, of its base model and of how it is asked to adapt: equal requests
get one adapter, which is made once. A folder appears when it is complete, and is nobody's before it is deleted.

What there is stands on a list in memory, which a thread reads from the disk at the start. Several processes may share
a folder: what another one has made or removed is put right on the list when it is asked for by its id.

>>> store = AdapterStore("adapters")
>>> store.save(Made(id=store.identify(model.parts.id, model.base_fingerprint, pairs), examples=4), adapter)
>>> store.load(id).spec
>>> store.listed.result().page(100).ids
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hyperflax import configs
from hyperflax.checkpoints.artefacts import ADAPTER_FILES, Adapter, Count, load_adapter, read_origin
from hyperflax.checkpoints.fingerprint import support_hash
from hyperflax.errors import AdapterError, CheckpointError
from hyperflax.files import atomic_directory, fsync, local_folder, read_bytes
from hyperflax.json_files import read_schema, write_json
from hyperflax.serving.listing import Listing

log = logging.getLogger("hyperflax.serving")

FORMAT, VERSION = "hyperflax-made", 1
ID = re.compile(r"[0-9a-f]{32}")
# What `remove` calls an adapter before it deletes it, and `atomic_directory` before it is whole.
_LEFT = re.compile(r"\.[0-9a-f]{32}\.(old|tmp)-\d+-[0-9a-f]{8}")
_DAY = 24 * 60 * 60
_MADE = "made.json"


class NotSaved(AdapterError):
    """The disk did not take an adapter, or what a download is packed from, or did not let go of one."""


class UnknownAdapter(AdapterError):
    """There is no adapter with this id."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What is known of an adapter.

    Attributes:
      id: 32 hex digits.
      examples: how many it was made from.
      definition, refine_steps, supports: as in `Hypermodel.adapt`.
      warnings: what of the examples and the definition was not read, or cut, a sentence each.
      created: seconds since 1970.
      estimate: `Estimate.to_json()`; None if there is none.
      no_estimate: why there can be none; None if there can.
    """

    id: str
    examples: Count
    definition: str | None = None
    refine_steps: Count = 0
    supports: Count = 1
    warnings: list[str] = dataclasses.field(default_factory=list)
    created: float = dataclasses.field(default_factory=time.time)
    estimate: dict[str, Any] | None = None
    no_estimate: str | None = None


@dataclasses.dataclass(frozen=True)
class _MadeFile(Made):
    """Schema 1 of made.json."""

    format: str = FORMAT
    schema_version: int = VERSION


class AdapterStore:
    """Adapters by id in one folder, which is made if it is not there.

    Attributes:
      listed: what there is, once the folder has been read: 100,000 adapters in three seconds, on a slow disk in more.

    Raises:
      CheckpointError: it is an address, cannot be made, or may not be read and written in.
    """

    def __init__(self, folder: pathlib.Path | str):
        self.folder = local_folder(folder)
        expected = f"{self.folder}: expected a folder to keep adapters in"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{expected}, it cannot be made ({error.strerror})") from error
        # Asked, and not tried: where the disk is full, those that are there are served all the same.
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise CheckpointError(f"{expected}, this one may not be read and written in")
        self._listing = Listing()
        self.listed: concurrent.futures.Future[Listing] = concurrent.futures.Future()
        self.listed.set_running_or_notify_cancel()  # who waits for it and leaves does not cancel it for others
        threading.Thread(target=self._read_folder, name="hyperflax-list", daemon=True).start()

    @staticmethod
    def identify(hypermodel: str, base: str, examples: Sequence[tuple[str, str]], **options: Any) -> str:
        """Returns the id of what a hypermodel makes of these examples, in this order, with these options.

        Args:
          hypermodel: `ModelParts.id`.
          base: fingerprint of the base model, for which alone the adapter is good.
          examples, options: what `Hypermodel.adapt` is called with.
        """
        support = support_hash({"input": text, "target": target} for text, target in examples)
        document = json.dumps([hypermodel, base, support, options], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        """Whether it is on the disk, whole; the list says so from then on. Raises CheckpointError if it cannot look."""
        if ID.fullmatch(key) is None:
            return False
        return self._look(key)

    def save(self, made: Made, adapter: Adapter) -> None:
        """Keeps an adapter, in the place of what may be left of an earlier one. When this returns it is on disk.

        Raises:
          NotSaved: it is not, as on a full disk; nothing of it is left.
        """
        if ID.fullmatch(made.id) is None:
            raise AdapterError(f"id: expected 32 hex digits, got {made.id!r}")
        owned = (*ADAPTER_FILES, _MADE)
        try:
            with atomic_directory(self.folder / made.id, overwrite=True, owned=owned) as folder:
                adapter.save(folder, beside_others=True)
                self._write(folder, made)
        except (OSError, CheckpointError) as error:
            raise NotSaved(f"{self.folder / made.id}: {error}") from error
        self._look(made.id)

    def describe(self, made: Made) -> None:
        """Replaces what is known of an adapter. Raises UnknownAdapter if there is none, NotSaved as `save` does."""
        try:
            with self._folder(made.id) as folder:
                self._write(folder, made)
                if made.id not in self:  # removed meanwhile, and what was written is all that stands there
                    (folder / _MADE).unlink()
                    folder.rmdir()
                    raise UnknownAdapter(f"no adapter with the id {made.id!r}")
        except (OSError, CheckpointError) as error:
            raise NotSaved(f"{self.folder / made.id}: {error}") from error

    def about(self, key: str) -> Made:
        """What is known of an adapter.

        Raises:
          UnknownAdapter: there is none.
          CheckpointError: a file of it is damaged, or cannot be read.
        """
        with self._folder(key) as folder:
            found = read_schema(folder / _MADE, _MadeFile, file_format=FORMAT, version=VERSION)
            if found.id != key:
                raise CheckpointError(f"{folder / _MADE}: key 'id': expected {key!r}, got {found.id!r}")
        return Made(**{field.name: getattr(found, field.name) for field in dataclasses.fields(Made)})

    def load(self, key: str) -> Adapter:
        """An adapter. Raises as `about` does."""
        with self._folder(key) as folder:
            return load_adapter(folder)

    def origin(self, key: str) -> Adapter:
        """An adapter without its values, to see who made it and for what; its tree is empty. Raises as `about` does."""
        with self._folder(key) as folder:
            return read_origin(folder)

    def files(self, key: str) -> dict[str, bytes]:
        """An adapter's files as they lie on the disk, by name. Raises as `about` does."""
        with self._folder(key) as folder:
            return {name: read_bytes(folder / name) for name in ADAPTER_FILES}

    def remove(self, key: str) -> None:
        """Forgets an adapter. Raises UnknownAdapter if there is none, NotSaved if the disk does not let go of it."""
        # Deleted under another name, so that neither an interruption nor who makes it again meanwhile meets a half.
        aside = self.folder / f".{key}.old-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with self._folder(key) as folder:
                folder.rename(aside)
            fsync(self.folder)
        except (OSError, CheckpointError) as error:
            raise NotSaved(f"{self.folder / key}: {error}") from error
        self._look(key)
        shutil.rmtree(aside, ignore_errors=True)

    def _read_folder(self) -> None:
        """Lists what there is, and does away with what a service that was killed has left."""
        try:
            # The order of inodes is about the order in which they were made: those that follow are appended to the
            # list, and a disk reads them in one sweep.
            with _reading(self.folder):
                entries = sorted(os.scandir(self.folder), key=os.DirEntry.inode)
            for entry in entries:
                try:
                    self._read_entry(entry)
                except (OSError, CheckpointError) as error:  # one that cannot be read keeps nobody from the others
                    log.warning("not listed: %s", error)
        except BaseException as error:
            self.listed.set_exception(error)  # for those who ask for it
        else:
            self.listed.set_result(self._listing)

    def _read_entry(self, entry: os.DirEntry[str]) -> None:
        if ID.fullmatch(entry.name):
            self._look(entry.name)
        elif left := _LEFT.fullmatch(entry.name):
            # Deleting is for anybody to finish; what is not whole yet may be another service's work, but not for a day.
            with contextlib.suppress(FileNotFoundError):  # that other service has just finished
                if left[1] == "old" or entry.stat().st_mtime < time.time() - _DAY:
                    shutil.rmtree(entry.path, ignore_errors=True)

    def _look(self, key: str) -> bool:
        """Looks whether an adapter is on the disk, and lists it or takes it off the list."""
        # Looked at again after every change: each of several threads may have seen the disk before another's change,
        # and the last one that writes finds out.
        while (created := self._created(key)) != self._listing.created(key):
            self._listing.put(key, created)
        return created is not None

    def _created(self, key: str) -> int | None:
        """When an adapter was made, in nanoseconds since 1970; None if it is not there, whole."""
        with _reading(self.folder / key):
            try:
                found = [os.stat(self.folder / key / name) for name in (*ADAPTER_FILES, _MADE)]
            except (FileNotFoundError, NotADirectoryError):
                return None
        # Unlike made.json, which is written anew with an estimate, the first file is as old as the adapter.
        return found[0].st_mtime_ns if all(stat.S_ISREG(file.st_mode) for file in found) else None

    @contextlib.contextmanager
    def _folder(self, key: str) -> Iterator[pathlib.Path]:
        """Yields the folder of an adapter.

        Raises:
          UnknownAdapter: there is none, or none any more on leaving.
          CheckpointError: the system refuses what is done with it.
        """
        unknown = UnknownAdapter(f"no adapter with the id {key!r}")
        if key not in self:
            raise unknown
        try:
            with _reading(self.folder / key):
                yield self.folder / key
        except CheckpointError:
            if key in self:
                raise
            raise unknown from None  # somebody else has removed it meanwhile

    def _write(self, folder: pathlib.Path, made: Made) -> None:
        write_json(folder / _MADE, configs.to_json(_MadeFile(**dataclasses.asdict(made))))


@contextlib.contextmanager
def _reading(place: pathlib.Path) -> Iterator[None]:
    """Turns what the system refuses there into a CheckpointError, which is the service's own fault."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{place}: the system refuses it ({error.strerror})") from error
