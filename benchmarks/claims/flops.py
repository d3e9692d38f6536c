"""Floating-point operations of a hypermodel's training step, in closed form.

    hypernetwork   6 N tokens      forward, gradient of the activations, gradient of the weights
    frozen base    4 N tokens      no gradient of the weights
    attention      twelve per query, key and channel, in either (two products, three passes)
    teacher        2 N tokens      forward alone

N counts the parameters of matrix multiplications, a token meets each of them once. Counted are matrix products with
padding in them, as they are computed; not counted are element-wise work, embedding look-ups, the optimizer and
rematerialised work. `tests/benchmarks/test_claims_flops.py` holds the forward pass against XLA's own cost analysis.

A forward pass is (projections, mixing): operations of products with weights, and of products of activations with each
other, because the frozen base repeats the former twice and the latter three times.

>>> step_flops(t5_config, spec, HyperT5Config(t5=t5_config), EpisodeConfig())
"""

from __future__ import annotations

from typing import NamedTuple

from hyperflax.adapters.kinds import groups
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.heads import group_layers, slot_size, total_slots
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.types import T5Config


class Forward(NamedTuple):
    """Operations of one forward pass."""

    projections: int
    mixing: int

    def __add__(self, other: Forward) -> Forward:  # type: ignore[override]
        return Forward(self.projections + other.projections, self.mixing + other.mixing)

    def times(self, factor: int) -> Forward:
        return Forward(self.projections * factor, self.mixing * factor)

    @property
    def trained(self) -> int:
        """Of forward and backward with all gradients."""
        return 3 * (self.projections + self.mixing)

    @property
    def frozen(self) -> int:
        """Of forward and backward without gradients of the weights."""
        return 2 * self.projections + 3 * self.mixing

    @property
    def total(self) -> int:
        return self.projections + self.mixing


def encoder(t5: T5Config, rows: int, length: int) -> Forward:
    """The encoder over `rows` rows of `length` tokens."""
    tokens = rows * length
    layer = Forward(tokens * (_attention(t5) + _mlp(t5)), rows * _mixing(t5, length, length))
    return layer.times(t5.num_encoder_layers)


def decoder(t5: T5Config, rows: int, length: int, source: int, passes: int = 1) -> Forward:
    """The decoder over `rows` rows of `length` queries with `source` encoded tokens each, without the logits.

    Several passes over the same source compute its keys and values once.
    """
    queries = rows * length * (_attention(t5) + _attention(t5) // 2 + _mlp(t5))
    mixing = rows * (_mixing(t5, length, length) + _mixing(t5, length, source))
    layer = Forward(passes * queries + rows * source * _attention(t5) // 2, passes * mixing)
    return layer.times(t5.num_decoder_layers)


def hypernetwork(network: HyperT5Config | HARTConfig, spec: AdapterSpec, rows: int, length: int) -> Forward:
    """Adapters of one task from a support of `rows` rows of `length` tokens."""
    t5, layers = network.t5, spec.layers()
    if isinstance(network, HARTConfig):
        slots = max(spec.num_slots(*layer) for layer in layers) + network.extra_slots
        decoded = decoder(t5, 1, slots, rows * length, passes=len(layers) * network.steps_per_layer)
    else:
        decoded = decoder(t5, 1, total_slots(spec), rows * length)
    return encoder(t5, rows, length) + decoded + _heads(network, spec)


def base(t5: T5Config, rows: int, inputs: int, targets: int) -> Forward:
    """The base model with teacher forcing, logits included, without adapters."""
    logits = Forward(2 * rows * targets * t5.emb_dim * t5.vocab_size, 0)
    return encoder(t5, rows, inputs) + decoder(t5, rows, targets, inputs) + logits


def adapted(spec: AdapterSpec, t5: T5Config, rows: int, inputs: int, targets: int) -> Forward:
    """What adapters add to `base`; their values are activations of the hypernetwork, so all of it is mixing."""
    total = 0
    for path, leaves in groups(spec).items():
        stack, cross = path.split("/")[0], "/encoder_decoder_attention/" in path
        queries = rows * (inputs if stack == "encoder" else targets)
        if leaves[0].reader == "lora":
            # Keys and values of cross-attention are projections of the encoded inputs.
            of_source = cross and path.split("/")[-2] in ("key", "value")
            total += (
                2 * (rows * inputs if of_source else queries) * sum(leaf.shape[0] * leaf.shape[1] for leaf in leaves)
            )
        else:
            total += 4 * queries * leaves[0].slots * t5.joined_kv
    return Forward(0, total)


def step_flops(
    t5: T5Config,
    spec: AdapterSpec,
    network: HyperT5Config | HARTConfig,
    episodes: EpisodeConfig,
    *,
    distilled: bool = False,
) -> int:
    """Operations of one training step of a hypernetwork.

    Args:
      t5: shape of the frozen base.
      spec, network: of the adapters and of what writes them.
      episodes: of training: tasks, rows and lengths; each of its `supports` is read.
      distilled: a teacher reads `episodes.teacher_length` tokens before every scored example.
    """
    shape = (episodes.examples, episodes.inputs_length, episodes.targets_length)
    one = episodes.supports * hypernetwork(network, spec, episodes.rows, episodes.support_length).trained
    one += base(t5, *shape).frozen + adapted(spec, t5, *shape).frozen
    if distilled:
        one += base(t5, episodes.examples, episodes.teacher_length, episodes.targets_length).total
    return episodes.tasks_per_batch * one


def _attention(t5: T5Config) -> int:
    """Of the four projections of one token."""
    return 8 * t5.emb_dim * t5.joined_kv


def _mlp(t5: T5Config) -> int:
    return 2 * t5.emb_dim * t5.mlp_dim * (len(t5.mlp_activations) + 1)


def _mixing(t5: T5Config, queries: int, keys: int) -> int:
    """Of scores and of the weighted sum of values."""
    return 4 * queries * keys * t5.joined_kv


def _heads(network: HyperT5Config | HARTConfig, spec: AdapterSpec) -> Forward:
    emb, hidden = network.t5.emb_dim, network.heads.hidden
    total = 0
    for group in group_layers(spec):
        values = sum(slot_size(leaf) for leaf in group.leaves[0])
        total += 2 * len(group.layers) * group.slots * hidden * (emb + values)
    return Forward(total, 0)
