"""A hypermodel in use: a frozen T5, the hypernetwork that writes its adapters, and text in and out.

>>> model = hyperflax.load("strings")
>>> adapter = model.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")])
>>> model.predict(["grace hopper"], adapter)
['Hopper, G.']

Everything below the text is batched: `generate`, `refine` and `decode` take arrays with a task axis, and are what
evaluation and serving call.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import configs
from hyperflax.adapters.kinds import check_base as check_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, check_base
from hyperflax.checkpoints.fingerprint import support_hash
from hyperflax.checkpoints.model_directory import (
    ModelParts,
    collect_files,
    is_model_directory,
    load_model_directory,
    save_model_directory,
)
from hyperflax.checkpoints.shapes import leaf_problems
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.data import vocabularies
from hyperflax.data.batches import text_batch
from hyperflax.data.episode_config import EpisodeConfig, in_inputs, in_support
from hyperflax.data.episode_plan import fitting_support, support_overhead
from hyperflax.data.examples import Example, TaskInfo, tokenise
from hyperflax.data.jsonl import Line
from hyperflax.data.rendering import deal, episode_arrays
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.files import fetched
from hyperflax.hypernets.encoded_rows import EncodedRows
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.hypernets.protocol import SupportReader, parameter_shapes
from hyperflax.models.decoding import Greedy, Method, decode
from hyperflax.models.t5 import T5
from hyperflax.padding import rounded_up
from hyperflax.training.refine import refine
from hyperflax.types import Array, PyTree, T5Config

HYPERNETWORKS: Mapping[str, tuple[type, type]] = {
    "HyperT5": (HyperT5Config, HyperT5),
    "HART": (HARTConfig, HART),
}
REFINE_LEARNING_RATE = 1e-3
REFINED_TOKENS = 1 << 15  # of examples that refining works on at once: those of some tasks, or a part of one task's
TRAINING_TASKS = "training_tasks"  # in a model's provenance: hashes of their names, see evaluation/contamination.py
ROWS = 64  # rows decoded at once
_LOG = logging.getLogger("hyperflax")

TextPair = tuple[str, str] | Mapping[str, str] | Line


@dataclasses.dataclass(frozen=True)
class HypermodelConfig:
    """What a hypermodel is made of.

    Attributes:
      base: shape of the frozen T5.
      spec: the adapters that are generated for it.
      hypernetwork: configuration of the hypernetwork.
      episodes: how support and inputs are laid out as tokens.
      vocabulary: of all tokens.
    """

    base: T5Config
    spec: AdapterSpec
    hypernetwork: HyperT5Config | HARTConfig
    episodes: EpisodeConfig
    vocabulary: vocabularies.Vocabulary

    def __post_init__(self) -> None:
        check_spec(self.spec, self.base)
        if self.base.scan_layers or self.hypernetwork.t5.scan_layers:
            raise ConfigError("HypermodelConfig: expected unrolled layers, got scan_layers=True")
        for name, t5 in (("base", self.base), ("hypernetwork.t5", self.hypernetwork.t5)):
            vocabularies.check_room(f"HypermodelConfig.{name}", t5.vocab_size, self.vocabulary)

    @property
    def hypernetwork_class(self) -> str:
        """Name of the hypernetwork's class in a model directory. Raises ConfigError where `HYPERNETWORKS` has none."""
        for name, (config, _) in HYPERNETWORKS.items():
            if type(self.hypernetwork) is config:
                return name
        raise ConfigError(
            f"HypermodelConfig.hypernetwork: expected the configuration of one of {', '.join(HYPERNETWORKS)}, got a "
            f"{type(self.hypernetwork).__name__}; a new one gets an entry in hyperflax.hypermodel.HYPERNETWORKS"
        )

    def build(self, *, scan_layers: bool = False) -> tuple[T5, HyperT5 | HART]:
        """Returns the two modules, with scanned layers on request."""
        network = HYPERNETWORKS[self.hypernetwork_class][1]
        trunk = dataclasses.replace(self.hypernetwork, t5=self.hypernetwork.t5.replace(scan_layers=scan_layers))
        return T5(self.base.replace(scan_layers=scan_layers)), network(trunk, self.spec)


class Hypermodel:
    """A hypermodel with its parameters.

    Args:
      config: see `HypermodelConfig`.
      base_params: the frozen T5's, as T5X names them.
      hypernetwork_params: the hypernetwork's; None for a model that only predicts.
      name: short name for people.
      results, provenance: kept in the model directory, json.
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
    ):
        self.config = config
        self.model, self.hypernetwork = config.build()
        self.parts = ModelParts(
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
            files=collect_files(config.vocabulary.write_files),
        )
        self.base_params = jax.device_put(base_params)

    # On disk

    @classmethod
    def from_directory(cls, directory: pathlib.Path | str, *, hypernetwork: bool = True) -> Hypermodel:
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
        model = cls(config, parts.base, parts.hypernetwork_params, name=parts.name)
        model.parts = parts
        return model

    def save(self, directory: Location | str, *, dtype: StorageDtype | None = None, overwrite: bool = False) -> None:
        """Writes a model directory; in bfloat16 it takes half the space and holds rounded values."""
        save_model_directory(directory, self.parts, dtype=dtype, overwrite=overwrite)

    def with_base(self, base_params: PyTree) -> Hypermodel:
        """Returns the same hypernetwork on another base model of the same shape."""
        return Hypermodel(self.config, base_params, self.parts.hypernetwork_params, name=self.parts.name)

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the frozen T5, which its adapters name as their base."""
        return self.parts.base_fingerprint

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

    # Text in, text out

    def check_plain_inputs(self) -> None:
        """Raises ConfigError for a model in whose episodes a definition or examples stand before every input.

        Its inputs make sense behind their task's context alone, which an adapter does not carry.
        """
        if self.config.episodes.inputs_have_context:
            places = ("definition", "positives", "demonstrations")
            given = ", ".join(f"{place}='{getattr(self.config.episodes, place)}'" for place in places)
            raise ConfigError(
                f"model '{self.parts.name}': expected episodes with nothing before the inputs, got {given}; such a "
                "model is evaluated (hyperflax evaluate), it does not adapt and predict from text"
            )

    def adapt(
        self,
        examples: Iterable[TextPair],
        *,
        refine_steps: int = 0,
        definition: str | None = None,
        supports: int = 1,
        learning_rate: float = REFINE_LEARNING_RATE,
    ) -> Adapter:
        """Generates an adapter from examples in one forward pass.

        Args:
          examples: (input, target) pairs, mappings with `input` and `target`, or lines of `read_lines`; at least one.
            Those that a joint row has no room for are not read, which is logged.
          refine_steps: Adam steps on the same examples afterwards; those that are longer than the rows of training are
            cut for them, which is logged.
          definition: the task's instruction, for models whose episodes have one.
          supports: the examples are dealt out to so many supports, each is read alone, and the adapter is written from
            the mean of their slot states: for more examples than one support holds, or than training showed at once.
          learning_rate: of the refining steps.

        Raises:
          DataError: no example, one that is no pair of strings, or one that is too long for the support; names its
            number, or its line.
          ConfigError: a number out of its range, a definition for a model that reads none, or a model with context
            before its inputs.
        """
        self.check_plain_inputs()
        given = list(examples)
        names = [one.at if isinstance(one, Line) else f"example {number}" for number, one in enumerate(given)]
        pairs = [_pair(example, name) for example, name in zip(given, names, strict=True)]
        if not pairs:
            raise DataError("examples: expected at least one (input, target) pair, got none")
        if refine_steps < 0:
            raise ConfigError(f"refine_steps: expected 0 or more, got {refine_steps}")
        if not 1 <= supports <= len(pairs):
            raise ConfigError(f"supports: expected 1 to {len(pairs)}, the number of examples, got {supports}")
        if definition and not in_support(self.config.episodes.definition):
            raise ConfigError(f"definition: expected none, which this model was trained with, got {definition!r:.80}")
        shown = self._examples(pairs)
        info = self._info(definition)
        self._check_support(shown, info, names)
        dealt = deal(shown, supports)
        rows = [self._episode(part, [], info, len(dealt[0]))["support_tokens"] for part in dealt]
        sentinel = self.config.vocabulary.sentinel(self.config.episodes.input_sentinel)
        if (read := sum(np.count_nonzero(part == sentinel) for part in rows)) < len(pairs):
            _LOG.warning(
                "%d of %d examples are read, a row of %d tokens has no room for more; `supports` deals them out",
                read,
                len(pairs),
                self.config.episodes.support_length,
            )
        adapters = self.generate({"support_tokens": (rows[0] if supports == 1 else np.stack(rows))[None]})
        if refine_steps:
            self._tell_what_is_cut(shown)
            adapters, _ = self.refine(adapters, self.own_examples([shown]), refine_steps, learning_rate)
        tree = jax.tree.map(lambda leaf: leaf[0], jax.device_get(adapters))
        metadata = AdapterMetadata(
            base_fingerprint=self.base_fingerprint,
            hypermodel=self.parts.id,
            support_hash=support_hash({"input": x, "target": y} for x, y in pairs),
            refine_steps=refine_steps,
        )
        return Adapter(tree, self.config.spec, metadata)

    def _check_support(self, shown: Sequence[Example], info: TaskInfo, names: Sequence[str]) -> None:
        """Raises DataError if an example fits no row of a support, even alone."""
        config = self.config.episodes
        lengths = np.asarray([(len(example.inputs), len(example.targets)) for example in shown])
        fits = fitting_support(lengths, info, config)
        if not fits.all():
            first = int(np.argmin(fits))
            raise DataError(
                f"{names[first]}: expected at most {config.support_length} tokens, sentinels, end of sequence and a "
                f"definition in the same row included, got {lengths[first].sum() + support_overhead(info, config)}; "
                "demonstrations are never truncated"
            )

    def _tell_what_is_cut(self, shown: Sequence[Example]) -> None:
        """Logs how many examples refining does not see whole."""
        config = self.config.episodes
        room = config.inputs_length, config.targets_length
        if cut := sum(len(e.inputs) >= room[0] or len(e.targets) >= room[1] for e in shown):
            _LOG.warning(
                "%d of %d examples are cut for refining, to %d tokens of input and %d of target",
                cut,
                len(shown),
                *room,
            )

    def predict(
        self,
        inputs: Sequence[str],
        adapter: Adapter | None = None,
        *,
        method: Method | None = None,
        max_length: int | None = None,
        rng: Array | None = None,
    ) -> list[str]:
        """Runs the T5 on texts, with an adapter or bare.

        Args:
          inputs: any number of texts.
          adapter: made for this base model; None runs the bare model.
          method: how to decode; greedy by default.
          max_length: most tokens of a prediction; by default what the model was trained for.
          rng: key of the draws, for `Sample`.

        Raises:
          DataError: one text instead of several, or an input that is too long; names its number.
          AdapterError: the adapter belongs to another base model.
          ConfigError: a model with context before its inputs; `Sample` without a key.
        """
        return list(self.answers(inputs, adapter, method=method, max_length=max_length, rng=rng))

    def answers(
        self,
        inputs: Sequence[str],
        adapter: Adapter | None = None,
        *,
        names: Sequence[str] | None = None,
        method: Method | None = None,
        max_length: int | None = None,
        rng: Array | None = None,
    ) -> Iterator[str]:
        """Yields what `predict` returns as batches are done; all inputs are looked at before the first is decoded.

        Args:
          inputs, adapter, method, max_length, rng: see `predict`.
          names: what to call the inputs in an error; by default their numbers.

        Raises (when the first answer is asked for):
          DataError, AdapterError, ConfigError: see `predict`.
        """
        self.check_plain_inputs()
        if isinstance(inputs, str):  # a sequence of texts, too: its letters
            raise DataError(f"inputs: expected a list of texts, got the one text {inputs!r:.80}")
        tree = None
        if adapter is not None:
            check_base(adapter, self.base_fingerprint)
            check_spec(adapter.spec, self.config.base)
            tree = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], adapter.tree)
        vocabulary = self.config.vocabulary
        tokens = text_batch(
            [(tokenise(text, vocabulary), ()) for text in inputs],
            inputs_length=self.config.episodes.inputs_length,
            targets_length=2,
            names=names or [f"input {number}" for number in range(len(inputs))],
        )["encoder_input_tokens"]
        for start in range(0, len(tokens), ROWS):
            rows = tokens[start : start + ROWS]
            padded = np.pad(rows, ((0, rounded_up(len(rows)) - len(rows)), (0, 0)))
            key = None if rng is None else jax.random.fold_in(rng, start)
            out = self.decode(padded[None], tree, method=method, max_length=max_length, rng=key)[0]
            yield from (vocabulary.decode(row.tolist()) for row in out[: len(rows)])

    # Arrays in, arrays out

    def episode(
        self,
        support: Sequence[tuple[str, str]],
        scored: Sequence[tuple[str, str]],
        definition: str | None = None,
        shots: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns one episode's arrays from text, with room for as many shots as `support` has, at least `shots`.

        Rows are padded to one of few numbers, so that not every number of examples is compiled for.
        """
        return self._episode(self._examples(support), self._examples(scored), self._info(definition), shots)

    def _episode(
        self, shown: Sequence[Example], asked: Sequence[Example], info: TaskInfo, shots: int
    ) -> dict[str, np.ndarray]:
        """`episode` of tokens."""
        config = self.config.episodes
        room = rounded_up(max(len(shown), shots, config.shots))
        config = config.replace(shots=room, examples=rounded_up(max(len(asked), 1)))
        return episode_arrays(shown, asked, config, self.config.vocabulary, info, "examples")

    def _examples(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        return [Example.from_text(*pair, self.config.vocabulary) for pair in pairs]

    def _info(self, definition: str | None) -> TaskInfo:
        return TaskInfo(definition=tokenise(definition, self.config.vocabulary)) if definition else TaskInfo()

    def own_examples(
        self, supports: Sequence[Sequence[Example]], infos: Sequence[TaskInfo] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns every task's support as inputs and targets [task, example, length], what refining trains on.

        Definitions and positives, given as `infos`, stand before the inputs where they stood in training; the support
        never does, it would show its own targets. What is too long is cut. Rows of padding, of weight 0, fill up to one
        of few numbers of examples.
        """
        episodes = self.config.episodes
        config = episodes.replace(
            examples=rounded_up(max([1, *map(len, supports)])),
            definition="inputs" if in_inputs(episodes.definition) else "none",
            positives="inputs" if in_inputs(episodes.positives) else "none",
            demonstrations="none",
            teacher="none",
            too_long="truncate",
        )
        infos = infos or len(supports) * [TaskInfo()]
        rows = [
            episode_arrays((), support, config, self.config.vocabulary, info)
            for support, info in zip(supports, infos, strict=True)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "support_tokens"}

    def generate(self, episodes: Mapping[str, Any]) -> PyTree:
        """Returns the adapters, leaves [task, ...], of `support_tokens` [task, rows, length].

        Several supports of each task, [task, supports, rows, length], are each read alone, and the adapters are written
        from the mean of their slot states. A row that was read before is not encoded again, see `EncodedRows`.
        """
        if not isinstance(self.hypernetwork, SupportReader):
            names = [name for name in ("support_tokens", "task_index") if name in episodes]
            return self._whole(self.hypernetwork_params, {name: jnp.asarray(episodes[name]) for name in names})
        return self._write(self.hypernetwork_params, self.slot_states(episodes))

    def slot_states(self, episodes: Mapping[str, Any]) -> Array:
        """Returns the states [task, slots, emb] that `generate` writes the adapters of `support_tokens` from."""
        tokens = np.asarray(episodes["support_tokens"], np.int32)
        *tasks, rows, length = tokens.shape
        flat = tokens.reshape(-1, rows, length)
        states = self._read(self.hypernetwork_params, self._encoded(flat), flat)
        return states if len(tasks) == 1 else np.mean(np.reshape(states, (*tasks, *states.shape[1:])), axis=1)

    def refine(
        self, adapters: PyTree, examples: Mapping[str, Any], steps: int, learning_rate: float = REFINE_LEARNING_RATE
    ) -> tuple[PyTree, np.ndarray]:
        """Returns the adapters after `steps` Adam steps on `examples` [task, example, length], and each task's loss
        [task] before the last of them. Of many long examples, few tasks are refined at once, or few of one task's."""
        tasks, count = examples["encoder_input_tokens"].shape[:2]
        tokens = sum(np.size(leaf) for name, leaf in examples.items() if name.endswith("input_tokens"))
        microbatches = 1
        while tokens > microbatches * tasks * REFINED_TOKENS and count % (2 * microbatches) == 0:
            microbatches *= 2
        run = functools.partial(self._refine, microbatches=microbatches)
        blocks = min(tasks, -(-tokens // (microbatches * REFINED_TOKENS)))
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
        """Returns tokens [task, example, length] for encoder inputs [task, example, length]; best decode of each."""
        length = self.config.episodes.targets_length if max_length is None else max_length
        return np.asarray(
            self._decode(self.base_params, inputs, adapters, rng, method=method or Greedy(), max_length=length)
        )

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
            return out.tokens

        return run


def load(name_or_directory: pathlib.Path | str, *, hypernetwork: bool = True) -> Hypermodel:
    """Loads a shipped hypermodel by name (`strings`) or any by its model directory, here or in a bucket.

    Args:
      name_or_directory: which.
      hypernetwork: False leaves it on the disk: half the time and memory, for predictions with adapters that are there.

    Raises:
      CheckpointError: there is no such model, or its files are damaged.
    """
    with fetched(name_or_directory) as directory:
        return Hypermodel.from_directory(find(directory), hypernetwork=hypernetwork)


def find(name_or_directory: pathlib.Path | str) -> pathlib.Path:
    """Returns the directory of a model that `load` takes. Raises CheckpointError where there is none."""
    path = pathlib.Path(name_or_directory)
    shipped = pathlib.Path(__file__).resolve().parent / "assets"
    if not path.is_dir() and path.name == str(name_or_directory) and (shipped / path.name).is_dir():
        path = shipped / path.name
    if not path.is_dir():
        names = sorted(p.name for p in shipped.glob("*") if is_model_directory(p))
        shipping = f"one of {names}" if names else "(none ships with this version; docs/strings.md trains one)"
        raise CheckpointError(f"model '{name_or_directory}': expected a model directory or {shipping}")
    if not is_model_directory(path):
        inside = next(filter(is_model_directory, path.glob("*")), None)
        hint = (
            f"one is {inside}"
            if inside
            else "`hyperflax inspect` says what this is, `hyperflax train` makes one of a T5"
        )
        raise CheckpointError(f"model '{name_or_directory}': expected a hypermodel, with hypermodel.json; {hint}")
    return path


def _pair(example: TextPair, name: str) -> tuple[str, str]:
    if isinstance(example, Line):
        return example.input, example.target
    if isinstance(example, Mapping):
        missing = [key for key in ("input", "target") if key not in example]
        if missing:
            raise DataError(f"{name}: expected keys 'input' and 'target', got {sorted(example)}")
        example = (example["input"], example["target"])
    # A string of two characters is a sequence of two strings, too.
    pair = () if isinstance(example, str) or not isinstance(example, Sequence) else tuple(example)
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise DataError(f"{name}: expected an (input, target) pair of strings, got {example!r:.80}")
    return pair
