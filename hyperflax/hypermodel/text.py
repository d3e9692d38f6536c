"""A hypermodel on text: the examples of a task to its adapter, and inputs to predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.kinds import check_spec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, check_base
from hyperflax.checkpoints.fingerprint import support_hash
from hyperflax.configs import whole_number
from hyperflax.data.batches import text_batch
from hyperflax.data.episode_config import in_inputs, in_support
from hyperflax.data.episode_plan import fitting_support, support_overhead
from hyperflax.data.examples import Example, TaskInfo, tokenise
from hyperflax.data.jsonl import Line, TextPair, as_lines, encodable
from hyperflax.data.rendering import deal, episode_arrays
from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.hypermodel.arrays import REFINE_LEARNING_RATE, ArrayHypermodel
from hyperflax.models.decoding import Method
from hyperflax.padding import rounded_up, trim, trim_examples
from hyperflax.types import Array

ROWS = 64  # rows decoded at once
WINDOW = 4 * ROWS  # inputs of which those of like length are decoded at once
_LOG = logging.getLogger("hyperflax")


class Hypermodel(ArrayHypermodel):
    """A hypermodel that takes and gives text; the methods of `ArrayHypermodel` take whole batches of tasks.

    >>> adapter = model.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")])
    >>> model.predict(["grace hopper"], adapter)
    ['Hopper, G.']
    """

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
            Those that a joint row has no room for are not read.
          refine_steps: Adam steps on the same examples afterwards; those that are longer than the rows of training are
            cut for them.
          definition: the task's instruction, for models whose episodes have one; cut to its row where training cut
            them.
          supports: the examples are dealt out to so many supports, each is read alone, and the adapter is written from
            the mean of their slot states: for more examples than one support holds, or than training showed at once.
          learning_rate: of the refining steps.

        Returns:
          The adapter. What was not read, or cut, is logged and stands in its `metadata.provenance["warnings"]`, a
          sentence each.

        Raises:
          DataError: no example, one that is no pair of strings, one that is too long for the support, or a definition
            that is, where training cut none; names the example's number, or its line.
          ConfigError: a number out of its range, a definition for a model that reads none, a model with context before
            its inputs, or one that was loaded without its hypernetwork.
          AdapterError: the adapter is not finite.
        """
        self.check_plain_inputs()
        lines = as_lines(examples)
        if not lines:
            raise DataError("examples: expected at least one (input, target) pair, got none")
        refine_steps, supports = whole_number("refine_steps", refine_steps, 0), whole_number("supports", supports)
        if supports > len(lines):
            raise ConfigError(f"supports: expected 1 to {len(lines)}, the number of examples, got {supports}")
        if definition and not in_support(self.config.episodes.definition):
            raise ConfigError(f"definition: expected none, which this model was trained with, got {definition!r:.80}")
        shown = self._examples(lines)
        info = self._info(definition)
        self._check_support(shown, info, [line.at for line in lines])
        dealt = deal(shown, supports)
        rows = [self._episode(part, [], info, len(dealt[0]))["support_tokens"] for part in dealt]
        warnings = self._not_read(rows, info, len(lines))
        if refine_steps:
            warnings += self._cut_for_refining(shown)
        for warning in warnings:
            _LOG.warning("%s", warning)
        adapters = self.generate({"support_tokens": (rows[0] if supports == 1 else np.stack(rows))[None]})
        if refine_steps:
            adapters, _ = self.refine(adapters, self.own_examples([shown]), refine_steps, learning_rate)
        tree = jax.tree.map(lambda leaf: leaf[0], jax.device_get(adapters))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
            after = f"after {refine_steps} steps of refining; take fewer, or a lower rate"
            generated = "as the hypernetwork wrote it; other examples may help, refining does not"
            raise AdapterError(f"adapt: the adapter is not finite {after if refine_steps else generated}")
        metadata = AdapterMetadata(
            base_fingerprint=self.base_fingerprint,
            hypermodel=self.parts.id,
            support_hash=support_hash({"input": line.input, "target": line.target} for line in lines),
            refine_steps=refine_steps,
            provenance={"warnings": warnings} if warnings else {},
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

    def _not_read(self, rows: Sequence[np.ndarray], info: TaskInfo, examples: int) -> list[str]:
        """What supports [row, length] leave out of their examples and of their definition, a sentence each."""
        config, told = self.config.episodes, []
        no_room = f"are read, a row of {config.support_length} tokens has no room for more"
        if in_support(config.demonstrations):
            sentinel = self.config.vocabulary.sentinel(config.input_sentinel)
            if (read := sum(np.count_nonzero(part == sentinel) for part in rows)) < examples:
                told.append(f"{read} of {examples} examples {no_room}; `supports` deals them out")
        # It stands in front; where it is cut, a sentinel or the end of sequence follows.
        definition = info.definition
        same = [part[0, : len(definition)] == definition[: config.support_length] for part in rows]
        if (read := min(np.count_nonzero(np.logical_and.accumulate(row)) for row in same)) < len(definition):
            told.append(f"{read} of {len(definition)} tokens of the definition {no_room}")
        return told

    def _cut_for_refining(self, shown: Sequence[Example]) -> list[str]:
        """How many examples refining does not see whole, a sentence if there are any."""
        config = self.config.episodes
        inputs, targets = config.inputs_length, config.targets_length
        cut = sum(len(e.inputs) >= inputs or len(e.targets) >= targets for e in shown)
        told = (
            f"{cut} of {len(shown)} examples are cut for refining, to {inputs} tokens of input and {targets} of target"
        )
        return [told] if cut else []

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
          DataError: one text instead of several, an input that is no text, or one that is too long; names its number.
          AdapterError: the adapter belongs to another base model, its tree does not fit its spec, or the base model's
            logits are not finite with it.
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
        """Yields what `predict` returns, `WINDOW` by `WINDOW`; all inputs are looked at before the first is decoded.

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
            adapter.spec.validate(adapter.tree)
            tree = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], adapter.tree)
        names = names or [f"input {number}" for number in range(len(inputs))]
        starts = range(0, len(inputs), WINDOW)
        windows = [self._blocks(inputs[start : start + WINDOW], names[start : start + WINDOW]) for start in starts]
        for start, blocks in zip(starts, windows, strict=True):
            found: dict[int, str] = {}
            for places, rows in blocks:
                padded = np.pad(rows, ((0, rounded_up(len(rows)) - len(rows)), (0, 0)))
                key = None if rng is None else jax.random.fold_in(rng, start + len(found))
                out = self.decode(padded[None], tree, method=method, max_length=max_length, rng=key)[0]
                answers = (self.config.vocabulary.decode(row.tolist()) for row in out[: len(rows)])
                found.update(zip(places, answers, strict=True))
            yield from (found[place] for place in range(len(found)))

    def _blocks(self, inputs: Sequence[str], names: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Returns batches of inputs of like length: places in `inputs`, tokens [input, length] as long as need be."""
        tokens = [tokenise(_text(text, name), self.config.vocabulary) for text, name in zip(inputs, names, strict=True)]
        room = self.config.episodes.inputs_length
        batch = text_batch([(row, ()) for row in tokens], inputs_length=room, targets_length=1, names=names)
        rows, order = batch["encoder_input_tokens"], sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        parts = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
        return [(part, trim(rows[part]).copy()) for part in parts]  # a view would keep what is cut

    # Text to the arrays of `ArrayHypermodel`

    def episode(
        self,
        support: Iterable[TextPair],
        scored: Iterable[TextPair],
        definition: str | None = None,
        shots: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns one episode's arrays from examples as `adapt` takes them.

        There is room for as many shots as `support` has, at least `shots`. Rows are padded to one of few numbers, so
        that not every number of examples is compiled for.
        """
        shown, asked = self._examples(as_lines(support)), self._examples(as_lines(scored))
        return self._episode(shown, asked, self._info(definition), shots)

    def _episode(
        self, shown: Sequence[Example], asked: Sequence[Example], info: TaskInfo, shots: int
    ) -> dict[str, np.ndarray]:
        """`episode` of tokens."""
        config = self.config.episodes
        room = rounded_up(max(len(shown), shots, config.shots))
        config = config.replace(shots=room, examples=rounded_up(max(len(asked), 1)))
        return episode_arrays(shown, asked, config, self.config.vocabulary, info, "examples")

    def _examples(self, lines: Iterable[Line]) -> list[Example]:
        return [Example.from_text(line.input, line.target, self.config.vocabulary) for line in lines]

    def _info(self, definition: str | None) -> TaskInfo:
        return TaskInfo(definition=tokenise(definition, self.config.vocabulary)) if definition else TaskInfo()

    def own_examples(
        self, supports: Sequence[Sequence[Example]], infos: Sequence[TaskInfo] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns every task's support as inputs and targets [task, example, length], what refining trains on.

        Definitions and positives, given as `infos`, stand before the inputs where they stood in training; the support
        never does, it would show its own targets. What is too long is cut. Rows of padding, of weight 0, fill up to one
        of few numbers of examples, and columns in which all is padding are left out down to one of few lengths.
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
        return trim_examples(
            {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "support_tokens"}
        )


def _text(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{name}: expected a text, got {text!r:.80}")
    return encodable(text, "input", name)
