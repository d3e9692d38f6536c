"""Adapters of source tasks to start from, and which of them a new data set is to start from.

    bank/<source>/adapter.json, adapter.safetensors    fine-tuned on the source's data set by one and the same pipeline
    bank/<source>/map.safetensors                      the embedding space map, see `tuner/sources.py`

Embeddings are the encoder's states, averaged over an input's tokens; the labels that rank sources are the answers'
token embeddings, averaged and projected to a few dimensions at random. A source with the data set's own name or content
is passed over.

>>> build(bench, sources, "bank")
>>> bench = Bench(model, {"source": Bank.load("bank", model)})
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hyperflax import trees
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.artefacts import Adapter, check_base, load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.tensors import load_tree, save_tree
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.files import atomic_directory, local_folder
from hyperflax.hypermodel import Hypermodel
from hyperflax.models.t5 import T5
from hyperflax.padding import blocks
from hyperflax.tune.bench import Bench
from hyperflax.tune.trial import Group
from hyperflax.tuner.datasets import DataSet, check_distinct
from hyperflax.tuner.pipeline import Pipeline, default_pipeline
from hyperflax.tuner.sources import fit_map, rank, varying
from hyperflax.types import Array, PyTree

MAP = "map.safetensors"
LABELS = 8
"""Dimensions of the answers' embeddings."""

ROWS = 256
"""Most inputs that are embedded at once."""


def build(
    bench: Bench,
    datasets: Sequence[DataSet],
    out: pathlib.Path | str,
    *,
    pipeline: Pipeline | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Fine-tunes an adapter on every data set and fits its map; what is there already is kept.

    Args:
      bench: the model. datasets: the sources; names are names of folders.
      out: the bank. pipeline: of all sources, by default `default_pipeline()`.
      seed: of starts and order of examples. progress: show a bar.

    Raises:
      ConfigError: a name that is no plain folder name.
      DataError: two sources of one name or content, or a source that is there already with other examples.
    """
    check_distinct(datasets)
    pipeline, out = pipeline or default_pipeline(), local_folder(out)
    for data in datasets:
        if pathlib.PurePath(data.name).name != data.name or data.name.startswith("."):
            raise ConfigError(f"bank: expected a plain folder name, got '{data.name}'")
        if (out / data.name).is_dir():
            there = load_adapter(out / data.name).metadata.provenance.get("dataset_hash")
            if there != data.hash:
                raise DataError(f"{out / data.name}: expected the source of data set {data.hash}, found {there}'s")
    missing = [data for data in datasets if not (out / data.name).is_dir()]
    for data in tqdm(missing, unit="source", disable=not progress):
        group = Group(bench, data, [pipeline], [seed])
        group.finish()
        adapter = group.adapter(0)
        matrix = fit_map(embed(bench.model, data, None), embed(bench.model, data, adapter))
        provenance = {**adapter.metadata.provenance, "source": data.name, "dataset_hash": data.hash}
        metadata = dataclasses.replace(adapter.metadata, provenance=provenance)
        with atomic_directory(out / data.name) as folder:
            save_tree(folder / MAP, {"map": matrix.astype(np.float32)})
            dataclasses.replace(adapter, metadata=metadata).save(folder, beside_others=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """Source adapters of one spec and base model, with their maps.

    Attributes:
      adapters, maps: by the source's name.
    """

    adapters: Mapping[str, Adapter]
    maps: Mapping[str, np.ndarray]

    @classmethod
    def load(cls, path: pathlib.Path | str, model: Hypermodel) -> Bank:
        """Reads a bank.

        Raises:
          CheckpointError: no source, a damaged one, or adapters of several specs.
          AdapterError: adapters of another base model.
        """
        folders = sorted(folder for folder in pathlib.Path(path).glob("*") if (folder / MAP).is_file())
        if not folders:
            raise CheckpointError(f"{path}: expected folders of source adapters, found none")
        adapters, maps = {}, {}
        width = model.config.base.emb_dim
        for folder in folders:
            adapter, tree = load_adapter(folder), trees.flatten(load_tree(folder / MAP))
            check_base(adapter, model.base_fingerprint)
            shape = tree["map"].shape if set(tree) == {"map"} else None
            if shape != (width + 1, width) or not np.all(np.isfinite(tree["map"])):
                raise CheckpointError(f"{folder / MAP}: expected finite numbers [{width + 1}, {width}], got {shape}")
            adapters[folder.name], maps[folder.name] = adapter, tree["map"]
        if len({adapter.spec.leaves for adapter in adapters.values()}) > 1:
            raise CheckpointError(f"{path}: expected adapters of one spec, got several")
        return cls(adapters, maps)

    @property
    def specs(self) -> tuple[AdapterSpec]:
        """Of every adapter: one, for all have the same."""
        return (next(iter(self.adapters.values())).spec,)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all adapters and maps."""
        return fingerprint({name: {"adapter": one.tree, "map": self.maps[name]} for name, one in self.adapters.items()})

    def ranked(self, model: Hypermodel, data: DataSet) -> list[tuple[str, float]]:
        """Returns (source, evidence), best first, the data set itself left out.

        A single answer, or equal ones, speak for no source: then they come by name, with an evidence of NaN.

        Raises:
          ConfigError: no other source.
        """
        others, labels = self._others(data), answers(model, data)
        if not varying(labels).shape[1]:
            return [(name, math.nan) for name in sorted(others)]
        return rank(embed(model, data, None), labels, others)

    def check(self, data: DataSet) -> None:
        """Raises ConfigError where there is no source but the data set itself."""
        self._others(data)

    def _others(self, data: DataSet) -> dict[str, np.ndarray]:
        own = {
            name
            for name, adapter in self.adapters.items()
            if name == data.name or adapter.metadata.provenance.get("dataset_hash") == data.hash
        }
        others = {name: matrix for name, matrix in self.maps.items() if name not in own}
        if not others:
            raise ConfigError(f"data set '{data.name}': the bank holds no source of another name and other examples")
        return others

    def first(self, model: Hypermodel, data: DataSet, pipeline: Pipeline) -> Adapter:
        """Returns the adapter of the source that ranks first, whatever the pipeline."""
        del pipeline
        return self.adapters[self.ranked(model, data)[0][0]]


def embed(model: Hypermodel, data: DataSet, adapter: Adapter | None) -> np.ndarray:
    """Returns [n, emb] the training inputs' embeddings, by the base model or with an adapter."""
    arrays = data.arrays("train", model.config.vocabulary, model.config.episodes)
    tree = {} if adapter is None else {"adapters": adapter.tree}
    parts = [_encode(model.model, model.base_params, tree, one["encoder_input_tokens"]) for one in blocks(arrays, ROWS)]
    return np.concatenate(jax.device_get(parts)).astype(np.float64)[: len(data.train)]


@functools.partial(jax.jit, static_argnames="t5")  # compiled for a size once, not for every data set
def _encode(t5: T5, params: PyTree, adapters: PyTree, tokens: Array) -> Array:
    """The mean state [n, emb] of every row's tokens."""
    states = t5.apply({"params": params, **adapters}, tokens, method="encode")
    # A soft prompt stands before the tokens' own states.
    states, there = states[:, -tokens.shape[1] :], (tokens > 0)[..., None]
    return jnp.sum(states * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)


def answers(model: Hypermodel, data: DataSet) -> np.ndarray:
    """Returns [n, LABELS] embeddings of the training answers; equal for all adapters of a base model."""
    arrays = data.arrays("train", model.config.vocabulary, model.config.episodes)
    table = np.asarray(model.base_params["token_embedder"]["embedding"], np.float64)
    projection = np.random.default_rng(0).standard_normal((table.shape[1], LABELS)) / math.sqrt(table.shape[1])
    weights = arrays["decoder_loss_weights"][:-1, :, None]
    # Projected before they are looked up: the embeddings of all answers' tokens would be far larger.
    sums = np.sum((table @ projection)[arrays["decoder_target_tokens"][:-1]] * weights, axis=1)
    return sums / np.maximum(weights.sum(axis=1), 1)
