"""What can be trained on, by name: sources registered here, token caches, and whatever seqio knows.

A module with a function `register()` makes tasks known; it is named on the command line (`--module my_pkg.my_tasks`) or
announced by an installed package as an entry point of the group `hyperflax.tasks`.

>>> from hyperflax.data.examples import InMemorySource
>>> from hyperflax.data.vocabularies import Bytes
>>> def load(vocabulary):
...     return InMemorySource.from_strings({"upper": [("a", "A"), ("b", "B")]}, vocabulary or Bytes())
>>> register_source("doc_upper", {"train": load}, description="letters in capitals")
>>> load_source("doc_upper").sizes.tolist()
[2]
>>> unregister_source("doc_upper")
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType

from hyperflax.buckets import locate
from hyperflax.data.cache_format import MANIFEST
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.examples import ExampleSource, ExampleStream, stream_of
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError, DataError, MissingExtraError

ENTRY_POINTS = "hyperflax.tasks"
_LOG = logging.getLogger("hyperflax.data")

# (vocabulary or None for the source's own) -> source, or a stream: `load_source` holds it in memory, a cache does not
Loader = Callable[[Vocabulary | None], ExampleSource | ExampleStream]


@dataclasses.dataclass(frozen=True)
class SourceEntry:
    """A registered source.

    Attributes:
      name: what `--mixture` says.
      splits: a loader for each split.
      description: one line for `hyperflax tasks`.
      sizes: `() -> {split: (tasks, examples)}`, examples None if only reading would tell; None if that goes for both.
    """

    name: str
    splits: Mapping[str, Loader]
    description: str = ""
    sizes: Callable[[], Mapping[str, tuple[int, int | None]]] | None = None


_SOURCES: dict[str, SourceEntry] = {}
_REGISTERED: set[str] = set()
_STAND_IN: list[Loader] = []


def register_source(
    name: str,
    splits: Mapping[str, Loader],
    *,
    description: str = "",
    sizes: Callable[[], Mapping[str, tuple[int, int | None]]] | None = None,
    replace: bool = False,
) -> None:
    """Makes a source known under a name; see `SourceEntry`.

    Raises:
      ConfigError: the name is taken and `replace` is False, or there is no split.
    """
    if name in _SOURCES and not replace:
        raise ConfigError(
            f"source '{name}': expected a new name, it is registered already (replace=True overwrites it)"
        )
    if not splits:
        raise ConfigError(f"source '{name}': expected at least one split")
    _SOURCES[name] = SourceEntry(name, dict(splits), description, sizes)


def unregister_source(name: str) -> None:
    """Forgets a source."""
    _SOURCES.pop(name, None)


def sources() -> dict[str, SourceEntry]:
    """The registered sources by name."""
    return dict(sorted(_SOURCES.items()))


def register_modules(modules: Iterable[str | ModuleType] = (), *, entry_points: bool = True) -> None:
    """Imports task modules and calls their `register()`, once in a process.

    Modules without `register` are imported only: a seqio user's module registers its Tasks on import.

    Args:
      modules: names or modules.
      entry_points: also those that installed packages announce; one that cannot be imported or registered, because
        its data is not named, for instance, is left out with a warning.

    Raises:
      ConfigError: no such module, or one that cannot be imported.
      MissingExtraError: a named module needs seqio or TensorFlow, which is not installed.
    """
    if entry_points:
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
            if point.value in _REGISTERED:
                continue
            try:
                target = point.load()
                if register := getattr(target, "register", None) if isinstance(target, ModuleType) else target:
                    register()
            except Exception as error:  # of whatever kind: another's package, whose data need not be wanted now
                place, told = f"{point.name} = {point.value} of {ENTRY_POINTS}", f"{type(error).__name__}: {error}"
                _LOG.warning("entry point %s is left out: %s", place, told)
                continue
            _REGISTERED.add(point.value)
    for module in modules:
        name = module if isinstance(module, str) else module.__name__
        if name in _REGISTERED:
            continue
        loaded = import_module(module) if isinstance(module, str) else module
        if register := getattr(loaded, "register", None):
            register()
        _REGISTERED.add(name)


def import_module(name: str) -> ModuleType:
    """Imports a module of tasks. Raises as `register_modules` where it cannot."""
    if not name or name.startswith("."):
        raise _absent(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in ("seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text"):
            raise MissingExtraError(missing, "seqio") from error
        if name == missing or name.startswith(missing + "."):
            raise _absent(name) from error
        raise _broken(name, error) from error
    except MissingExtraError:
        raise
    except (ImportError, SyntaxError) as error:
        raise _broken(name, error) from error


def _absent(name: str) -> ConfigError:
    return ConfigError(
        f"module '{name}': expected an importable Python module, there is none of that name; expected is its dotted "
        "name, such as my_pkg.my_tasks, not its file, and in PYTHONPATH the folder that it lies in"
    )


def _broken(name: str, error: ImportError | SyntaxError) -> ConfigError:
    """What to say of a module that is there and cannot be imported: where it says what Python does not take."""
    if isinstance(error, SyntaxError):
        place, told = f"{error.filename}:{error.lineno}", error.msg
    else:
        frames = [at for at in traceback.extract_tb(error.__traceback__) if not at.filename.startswith("<frozen ")]
        place, told = f"{frames[-1].filename}:{frames[-1].lineno}", str(error)
    return ConfigError(f"module '{name}': expected an importable Python module, {place}: {told}")


@contextlib.contextmanager
def standing_in(loader: Loader) -> Iterator[None]:
    """While it is open, `load_source` returns what `loader` does, whatever the name: where only the shapes of batches
    are of interest, no data need be there."""
    _STAND_IN.append(loader)
    try:
        yield
    finally:
        _STAND_IN.pop()


def load_source(
    name: str,
    split: str = "train",
    *,
    module: str | None = None,
    vocabulary: Vocabulary | None = None,
    cache_dirs: Sequence[pathlib.Path | str] = (),
    seed: int = 0,
) -> ExampleSource:
    """The examples behind a name, in memory or in a token cache. In a gin file: `source = @registry.load_source()`.

    Args:
      name: a token cache's folder or address in a bucket, a registered source, or a seqio Task or Mixture; tried in
        this order.
      split: of it. A folder may be one cache, of this split, or hold one cache a split.
      module: to register where the name is not known yet, see `register_modules`; T5X's MIXTURE_OR_TASK_MODULE.
      vocabulary: expected; registered sources tokenise with it, the others must have been made with it.
      cache_dirs: folders with caches as `name/split`, looked up behind a cache of that name and before all else.
      seed: for a seqio Task's preprocessors that draw, see `seqio_source.read_seqio`.

    Raises:
      DataError: nothing of that name, no such split, a cache of another one, or another vocabulary.
      ConfigError: no such module, or one that cannot register: data that it needs is not named.
      MissingExtraError: only seqio may know the name, and it is not installed.
    """
    found = _open(name, split, module, vocabulary, cache_dirs, seed)
    return found.in_memory() if isinstance(found, ExampleStream) else found


def stream_source(
    name: str, split: str = "train", *, vocabulary: Vocabulary | None = None, seed: int = 0
) -> ExampleStream:
    """The examples behind a name one after the other, held in memory only if they are so anyway.

    Arguments and errors as `load_source`; those of reading are raised by whoever iterates over it.
    """
    found = _open(name, split, None, vocabulary, (), seed)
    if isinstance(found, ExampleStream):
        return found
    return ExampleStream(found.vocabulary, stream_of(found), found.group_rates)


def _open(
    name: str,
    split: str,
    module: str | None,
    vocabulary: Vocabulary | None,
    cache_dirs: Sequence[pathlib.Path | str],
    seed: int,
) -> ExampleSource | ExampleStream:
    if _STAND_IN:
        return _STAND_IN[-1](vocabulary)
    for folder in [locate(name), *(locate(parent) / name for parent in cache_dirs)]:
        for place in (folder / split, folder):
            if (place / MANIFEST).is_file():
                cache = CachedSource(place)
                if place == folder and (holds := cache.manifest["origin"].get("split", split)) != split:
                    raise DataError(f"{folder}: expected a cache of the split '{split}', it was made of '{holds}'")
                return _checked(cache, name, vocabulary)
    register_modules()
    if module and name not in _SOURCES:
        try:
            register_modules([module])
        except ConfigError as error:
            raise ConfigError(f"'{name}', from module '{module}': {error}") from error
    if entry := _SOURCES.get(name):
        if split not in entry.splits:
            raise DataError(f"source '{name}': expected a split out of {sorted(entry.splits)}, got '{split}'")
        return _checked(entry.splits[split](vocabulary), name, vocabulary)
    if importlib.util.find_spec("seqio") is None:
        raise MissingExtraError(f"'{name}' is no token cache and none of {sorted(_SOURCES)}; seqio", "seqio")
    if "seqio" not in sys.modules:  # nobody can have registered anything there, and its import takes seconds
        raise unknown(name)
    from hyperflax.data import seqio_source

    return _checked(seqio_source.read_seqio(name, split, seed=seed), name, vocabulary)


def unknown(name: str) -> DataError:
    """The error for a name behind which nothing stands."""
    return DataError(
        f"'{name}': expected a token cache's folder, one of {sorted(_SOURCES)} or a registered seqio Task or Mixture; "
        "`hyperflax tasks` lists what is known, --module makes more known"
    )


def _checked(
    source: ExampleSource | ExampleStream, name: str, vocabulary: Vocabulary | None
) -> ExampleSource | ExampleStream:
    if vocabulary is not None and source.vocabulary != vocabulary:
        raise DataError(f"'{name}': expected tokens of {vocabulary!r}, it has those of {source.vocabulary!r}")
    return source
