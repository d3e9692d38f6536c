"""A hypermodel on arrays: supports of many tasks to their adapters, refining and decoding with them.

Every array has a task axis in front; everything is compiled once for each shape, and what was read is kept.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import configs
from hyperflax.buckets import Location
from hyperflax.checkpoints.model_directory import (
    ModelParts,
    collect_files,
    load_model_directory,
    save_model_directory,
)
from hyperflax.checkpoints.shapes import leaf_problems
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.data import vocabularies
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.errors import AdapterError, CheckpointError, ConfigError
from hyperflax.hypermodel.config import HYPERNETWORKS, HypermodelConfig
from hyperflax.hypernets.encoded_rows import EncodedRows
from hyperflax.hypernets.protocol import SupportReader, parameter_shapes
from hyperflax.models import memory
from hyperflax.models.decoding import Greedy, Method, decode
from hyperflax.padding import trim
from hyperflax.training.refine import refine
from hyperflax.types import Array, PyTree, T5Config

REFINE_LEARNING_RATE = 1e-3


class ArrayHypermodel:
    """A hypermodel with its parameters, on arrays with a task axis.

    Args:
      config: see `HypermodelConfig`.
      base_params: the frozen T5's, as T5X names them.
      hypernetwork_params: the hypernetwork's; None for a model that only predicts.
      name: short name for people.
      results, provenance: kept in the model directory, json.
      created_with: the command.
      parts: all of these as a model directory has them, for `from_directory`; by default made of them.
    """

    def __init__(
        self,
        config: HypermodelConfig,
        base_params: PyTree,
        hypernetwork_params: PyTree | None,
        *,
        name: str = "hypermodel",
        results: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        created_with: str = "",
        parts: ModelParts | None = None,
    ):
        self.config = config
        self.model, self.hypernetwork = config.build()
        self.parts = parts or ModelParts(
            name=name,
            t5=configs.to_json(config.base),
            base=base_params,
            hypernetwork_class=config.hypernetwork_class,
            hypernetwork_config=configs.to_json(config.hypernetwork),
            hypernetwork_params=hypernetwork_params,
            spec=config.spec,
            vocabulary=config.vocabulary.to_json(),
            episode=configs.to_json(config.episodes),
            results=dict(results or {}),
            provenance=dict(provenance or {}),
            created_with=created_with,
            files=collect_files(config.vocabulary.write_files),
        )

    # On disk

    @classmethod
    def from_directory(cls, directory: pathlib.Path | str, *, hypernetwork: bool = True) -> Self:
        """Reads a model directory. See `load_model_directory` for the arguments and for what is checked."""
        folder = pathlib.Path(directory)
        parts = load_model_directory(folder, hypernetwork=hypernetwork)
        where = f"{folder}/hypermodel.json"
        if parts.hypernetwork_class not in HYPERNETWORKS:
            raise CheckpointError(
                f"{where}: hypernetwork: expected one of {sorted(HYPERNETWORKS)}, got '{parts.hypernetwork_class}'"
            )
        config_class = HYPERNETWORKS[parts.hypernetwork_class][0]
        config = HypermodelConfig(
            base=configs.from_json(T5Config, parts.t5, f"{where}: t5"),
            spec=parts.spec,
            hypernetwork=configs.from_json(config_class, parts.hypernetwork_config, f"{where}: hypernetwork.config"),
            episodes=configs.from_json(EpisodeConfig, parts.episode, f"{where}: episode"),
            vocabulary=vocabularies.from_json(parts.vocabulary, folder),
        )
        return cls(config, parts.base, parts.hypernetwork_params, parts=parts)

    def save(self, directory: Location | str, *, dtype: StorageDtype | None = None, overwrite: bool = False) -> None:
        """Writes a model directory; in bfloat16 it takes half the space and holds rounded values."""
        save_model_directory(directory, self.parts, dtype=dtype, overwrite=overwrite)

    def with_base(self, base_params: PyTree) -> Self:
        """Returns the same hypernetwork on another base model of the same shape."""
        return type(self)(self.config, base_params, self.parts.hypernetwork_params, name=self.parts.name)

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the frozen T5, which its adapters name as their base."""
        return self.parts.base_fingerprint

    @functools.cached_property
    def base_params(self) -> PyTree:
        """The frozen T5's parameters, on the device from the first use on: saving a model needs no room there."""
        return jax.device_put(self.parts.base)

    @functools.cached_property
    def hypernetwork_params(self) -> PyTree:
        """The hypernetwork's parameters, on the device from the first use on.

        Raises:
          CheckpointError: they are not those of the configuration; every leaf is listed.
          ConfigError: the model was loaded without them.
        """
        if (params := self.parts.hypernetwork_params) is None:
            raise ConfigError(
                f"model '{self.parts.name}' was loaded without its hypernetwork and only predicts; to generate "
                "adapters, load it with hypernetwork=True"
            )
        self.check_hypernetwork(f"model '{self.parts.name}'")
        return jax.device_put(params)

    def check_hypernetwork(self, where: str) -> None:
        """Raises CheckpointError, naming every leaf, where its parameters are not those of the configuration.

        It is done before the first use, not when a model is loaded: it traces the hypernetwork or a part of it, which
        who only predicts need not wait for.
        """
        if problems := leaf_problems(self.parts.hypernetwork_params, parameter_shapes(self.hypernetwork)):
            raise CheckpointError(f"{where}: the hypernetwork's parameters do not fit: " + "; ".join(problems))

    # Supports, adapters, decodes

    def generate(self, episodes: Mapping[str, Any]) -> PyTree:
        """Returns the adapters, leaves [task, ...], of `support_tokens` [task, rows, length].

        Several supports of each task, [task, supports, rows, length], are each read alone, and the adapters are written
        from the mean of their slot states. Rows are read at the length they have, and one that was read before is not
        encoded again, see `EncodedRows`.
        """
        if not isinstance(self.hypernetwork, SupportReader):
            given = {"support_tokens": _support(episodes)}
            if "task_index" in episodes:
                given["task_index"] = np.asarray(episodes["task_index"], np.int32)
            return self._whole(self.hypernetwork_params, given)
        return self._write(self.hypernetwork_params, self.slot_states(episodes))

    def slot_states(self, episodes: Mapping[str, Any]) -> Array:
        """Returns the states [task, slots, emb] that `generate` writes the adapters of `support_tokens` from."""
        tokens = _support(episodes)
        *tasks, rows, length = tokens.shape
        flat = tokens.reshape(-1, rows, length)
        states = self._read(self.hypernetwork_params, self._encoded(flat), flat)
        return states if len(tasks) == 1 else np.mean(np.reshape(states, (*tasks, *states.shape[1:])), axis=1)

    def refine(
        self, adapters: PyTree, examples: Mapping[str, Any], steps: int, learning_rate: float = REFINE_LEARNING_RATE
    ) -> tuple[PyTree, np.ndarray]:
        """Returns the adapters after `steps` Adam steps on `examples` [task, example, length], and each task's loss
        [task] before the last of them. Of many long examples, few tasks are refined at once, or few of one task's."""
        tasks, count, inputs = examples["encoder_input_tokens"].shape
        targets = examples["decoder_input_tokens"].shape[2]
        kept = memory.kept_bytes(self.config.base, tasks * count, inputs, targets)
        microbatches = memory.microbatches(kept // tasks, count)
        run = functools.partial(self._refine, microbatches=microbatches)
        blocks = min(tasks, -(-kept // (microbatches * memory.AT_ONCE)))
        if blocks <= 1:
            return run(self.base_params, adapters, dict(examples), steps, learning_rate)
        size, parts = -(-tasks // blocks), []
        for start in range(0, tasks, size):
            rows = np.arange(start, start + size) % tasks  # the last block is filled up with tasks from the front
            taken = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (adapters, dict(examples)))
            part = run(self.base_params, *taken, steps, learning_rate)
            parts.append(jax.tree.map(lambda leaf, start=start: leaf[: tasks - start], part))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def decode(
        self,
        inputs: Any,
        adapters: PyTree | None = None,
        *,
        method: Method | None = None,
        max_length: int | None = None,
        rng: Array | None = None,
    ) -> np.ndarray:
        """Returns tokens [task, example, length] for encoder inputs [task, example, length]; best decode of each.

        Raises:
          AdapterError: logits of some input are not finite, so that no token is the best.
        """
        length = self.config.episodes.targets_length if max_length is None else max_length
        tokens, scores = self._decode(
            self.base_params, inputs, adapters, rng, method=method or Greedy(), max_length=length
        )
        if wrong := np.argwhere(~np.isfinite(scores)).tolist():
            beside = "without an adapter" if adapters is None else "with these adapters"
            raise AdapterError(
                f"decode: the base model's logits are not finite {beside}, "
                f"at {len(wrong)} of {np.size(scores)} inputs, first at {wrong[0]}"
            )
        return np.asarray(tokens)

    @functools.cached_property
    def _whole(self):
        return jax.jit(
            jax.vmap(lambda params, episode: self.hypernetwork.apply({"params": params}, episode), (None, 0))
        )

    @functools.cached_property
    def _encoded(self) -> EncodedRows:
        encode = jax.jit(functools.partial(self.hypernetwork.apply, method="encode"))
        return EncodedRows(lambda rows: encode({"params": self.hypernetwork_params}, rows))

    @functools.cached_property
    def _read(self):
        def one(params: PyTree, encoded: Array, tokens: Array) -> Array:
            return self.hypernetwork.apply({"params": params}, encoded, tokens, method="read")

        return jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))

    @functools.cached_property
    def _write(self):
        def one(params: PyTree, states: Array) -> PyTree:
            return self.hypernetwork.apply({"params": params}, states, method="write")

        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    @functools.cached_property
    def _refine(self):
        @functools.partial(jax.jit, static_argnames="microbatches")
        def run(params, adapters, examples, steps, learning_rate, *, microbatches):
            return refine(
                self.model,
                params,
                adapters,
                examples,
                steps=steps,
                learning_rate=learning_rate,
                microbatches=microbatches,
            )

        return run

    @functools.cached_property
    def _decode(self):
        @functools.partial(jax.jit, static_argnames=("method", "max_length"))
        def run(params, inputs, adapters, rng, *, method, max_length):
            out = decode(self.model, params, inputs, adapters=adapters, rng=rng, method=method, max_length=max_length)
            return out.tokens, out.scores

        return run


def _support(episodes: Mapping[str, Any]) -> np.ndarray:
    """The rows of `support_tokens`, without columns in which all of them are padding, down to one of few lengths."""
    return trim(np.asarray(episodes["support_tokens"], np.int32))
