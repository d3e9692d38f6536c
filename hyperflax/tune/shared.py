"""The start `shared`: adapters trained uniformly on many tasks, one for each kind, for pipelines to go on from.

    shared/<kind>/adapter.json, adapter.safetensors

A multi-task warm start without a bi-level step (MAMF): every step draws from one pool that holds
equally many training examples of every source, and the part of the run with the best score on equally many held-out
examples of every source is kept. A data set that was among the sources has no shared start: it would know the answers.

>>> build(bench, sources, "shared", kinds=("lora", "prefix"))
>>> bench = Bench(model, {"shared": Shared.load("shared", model)})
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from hyperflax.adapters.kinds import kind_of
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.artefacts import Adapter, check_base, load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.data.jsonl import Line
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.files import atomic_directory, local_folder
from hyperflax.hypermodel import Hypermodel
from hyperflax.training.finetuning import LEARNING_RATE, LEARNING_RATES
from hyperflax.tune.bench import Bench
from hyperflax.tune.trial import Group
from hyperflax.tuner.datasets import SPLITS, DataSet, check_distinct
from hyperflax.tuner.pipeline import FIDELITIES, Pipeline, default_pipeline
from hyperflax.tuner.space import KINDS, WITH_PROMPT

BUILT = ("lora", "prefix", "soft_prompt", "parallel_mlp", "prefix+parallel_mlp")
"""What `build` makes unless told otherwise; the others are as large as the model, or start from these."""

FILE = "adapter.json"
MOST = 512
"""Held-out examples of all sources together: they are decoded after every part."""


def build(
    bench: Bench,
    sources: Sequence[DataSet],
    out: pathlib.Path | str,
    *,
    kinds: Sequence[str] = BUILT,
    epochs: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Trains an adapter of every kind on all sources; what is there already is kept.

    Args:
      bench: the model. sources: the data sets.
      out: the folder. kinds: of `space.KINDS`.
      epochs: passes over the pool: 4, 8, 16 or 32. seed: of starts and order of examples.
      progress: show a bar.

    Raises:
      ConfigError: an unknown kind, one that is given twice, or another number of epochs.
      DataError: two sources of one name or content, or an adapter that is there already and was trained on others.
    """
    check_distinct(sources)
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise ConfigError(f"shared: expected every kind once, got '{twice[0]}' more than once")
    out, data = local_folder(out), pool(sources)
    for kind in kinds:
        bench.space.check(pipeline_of(kind, epochs))
    provenance = {"sources": {source.name: source.hash for source in sources}}
    there = [kind for kind in kinds if (out / kind).is_dir()]
    for kind in there:
        if load_adapter(out / kind).metadata.provenance.get("sources") != provenance["sources"]:
            raise DataError(f"{out / kind}: expected an adapter of these sources, found one of others")
    for kind in tqdm([kind for kind in kinds if kind not in there], unit="kind", disable=not progress):
        group = Group(bench, data, [pipeline_of(kind, epochs)], [seed])
        for _ in range(FIDELITIES):
            group.advance()
        adapter = group.adapter(0)
        metadata = dataclasses.replace(adapter.metadata, provenance={**adapter.metadata.provenance, **provenance})
        with atomic_directory(out / kind) as folder:
            dataclasses.replace(adapter, metadata=metadata).save(folder, beside_others=True)


def pool(sources: Sequence[DataSet]) -> DataSet:
    """Returns one data set with equally many examples of every source in each part: as many as the smallest has.

    Raises:
      ConfigError: no source.
    """
    if not sources:
        raise ConfigError("shared: expected at least one source, got none")
    parts: dict[str, tuple[Line, ...]] = {}
    for split in SPLITS:
        size = min(len(getattr(source, split)) for source in sources)
        if split != "train":
            size = max(1, min(size, MOST // len(sources)))
        parts[split] = tuple(line for source in sources for line in getattr(source, split)[:size])
    return DataSet("shared", **parts)  # pyrefly: ignore[bad-argument-type]  # names of splits


def pipeline_of(kind: str, epochs: int) -> Pipeline:
    """Returns the pipeline that trains a shared adapter: the default one, with the kind's own learning rate.

    Raises:
      ConfigError: an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"shared: kind: expected one of {', '.join(KINDS)}, got '{kind}'")
    names, given = kind.split("+"), default_pipeline()
    lora = "lora" in names
    return dataclasses.replace(
        given,
        kind=kind,
        sites=given.sites if lora else None,
        rank=given.rank if lora else None,
        alpha_per_rank=given.alpha_per_rank if lora else None,
        length=8 if {"prefix", "soft_prompt"} & set(names) else None,
        bottleneck=16 if "parallel_mlp" in names else None,
        prompt_first=given.prompt_first if set(WITH_PROMPT) & set(names) else None,
        learning_rate=min(LEARNING_RATES.get(name, LEARNING_RATE) for name in names),
        epochs=epochs,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """Shared adapters of one base model.

    Attributes:
      adapters: by kind, as pipelines name it.
    """

    adapters: Mapping[str, Adapter]

    @classmethod
    def load(cls, path: pathlib.Path | str, model: Hypermodel) -> Shared:
        """Reads what `build` wrote; or a single adapter directory, which may be of any kinds.

        Raises:
          CheckpointError: no adapter, or one that is not of the kind that its folder names.
          AdapterError: an adapter of another base model.
        """
        path = pathlib.Path(path)
        single = (path / FILE).is_file()
        folders = [path] if single else [path / kind for kind in KINDS if (path / kind / FILE).is_file()]
        if not folders:
            raise CheckpointError(f"{path}: expected an adapter, or folders of them named by kinds, found none")
        adapters = {}
        for folder in folders:
            adapter = load_adapter(folder)
            check_base(adapter, model.base_fingerprint)
            found = {kind_of(leaf).kind for leaf in adapter.spec.leaves}
            joined = "+".join(sorted(found))
            if not single and found != set(folder.name.split("+")):
                raise CheckpointError(f"{folder}: expected an adapter of {folder.name}, found {joined}")
            adapters[joined if single else folder.name] = adapter
        return cls(adapters)

    @property
    def specs(self) -> list[AdapterSpec]:
        """One for each adapter."""
        return [adapter.spec for adapter in self.adapters.values()]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all adapters."""
        return fingerprint({kind: adapter.tree for kind, adapter in self.adapters.items()})

    def check(self, data: DataSet) -> None:
        """Raises ConfigError where a data set was among the sources, or may have been: has the name of one."""
        for kind, adapter in self.adapters.items():
            for name, digest in adapter.metadata.provenance.get("sources", {}).items():
                if digest == data.hash:
                    raise ConfigError(f"data set '{data.name}': the shared {kind} was trained on it, as '{name}'")
                if name == data.name:
                    raise ConfigError(
                        f"data set '{name}': has the name of a source of the shared {kind} and other examples; if they "
                        "are another task's, rename it"
                    )

    def first(self, model: Hypermodel, data: DataSet, pipeline: Pipeline) -> Adapter | None:
        """Returns the adapter of the pipeline's kind; a single one whatever the kind. Raises ConfigError as `check`."""
        del model
        self.check(data)
        kind = next(iter(self.adapters)) if len(self.adapters) == 1 else str(pipeline.kind)
        return self.adapters.get(kind)
