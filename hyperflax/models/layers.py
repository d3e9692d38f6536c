"""The parts of a T5 layer that are not attention: projection, RMS norm, feed-forward block, embedding.

Numerics are T5X's: parameters are float32 arrays (or what the checkpoint holds), cast to the compute dtype where they
are used; norms are computed in float32. Initialisers are T5X's too (Raffel et al. 2020, and Shazeer 2020 for the gated
block).

Every parameter is read together with the slot `full` of the `adapters` collection; a `Projection` reads `lora` besides,
and an `Mlp` `parallel_mlp`, each at its own path. An absent slot leaves exactly the bare computation:

>>> Projection(64).apply({"params": {"kernel": kernel}, "adapters": {"lora": {"a": a, "b": b}}}, x)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from hyperflax.adapters.full import changed
from hyperflax.adapters.lora import lora_delta
from hyperflax.adapters.parallel_mlp import parallel_delta
from hyperflax.models.matmul import project
from hyperflax.models.parameters import Initializer, param
from hyperflax.types import Array, T5Config

ATTENTION_INIT: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
DENSE_INIT: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
TABLE_INIT: Initializer = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def query_init(head_dim: int) -> Initializer:
    """T5 has no 1/sqrt(head_dim) in its attention scores; the factor lives in the query's initial values."""

    def init(*args: object) -> Array:
        return ATTENTION_INIT(*args) / math.sqrt(head_dim)

    return init


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the function that `T5Config.mlp_activations` names: all but `linear` have their names in `flax.linen`."""
    return (lambda x: x) if name == "linear" else getattr(nn, name)


def channels_whole(x: Array) -> Array:
    """Returns x [..., channels], every row of it on one device where a mesh is in use.

    Kernels in pieces are then brought together for a product; left to itself, XLA's partitioner also moves activations,
    which are larger.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free, None))


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
    """Returns the module's float32 parameter, plus what the slot `full` adds to it."""
    value = param(module, name, init, shape)
    slot = module.get_variable("adapters", "full")
    return value if slot is None else changed(value, slot[name])


class Projection(nn.Module):
    """`x W`, plus what the LoRA slot adds. The kernel is two-dimensional, [in, out], as in T5X's checkpoints.

    Attributes:
      features: width of the output.
      dtype: compute dtype, of the output too.
      kernel_init: initialiser of the kernel.
    """

    features: int
    dtype: str = "float32"
    kernel_init: Initializer = DENSE_INIT

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., in] -> [..., features]."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        # Rows are flattened for the slot as well: see `matmul.py`.
        rows = jnp.asarray(x, self.dtype).reshape(-1, x.shape[-1])
        y = project(rows, jnp.asarray(kernel, self.dtype))
        slot = self.get_variable("adapters", "lora")
        if slot is not None:
            y = y + lora_delta(rows, slot)
        return y.reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Scales every vector to a mean square of one: no mean subtracted, no bias (Zhang and Sennrich 2019)."""

    dtype: str = "float32"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., features] -> the same shape, in `dtype`."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        x = jnp.asarray(x, jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return jnp.asarray(x, self.dtype) * jnp.asarray(scale, self.dtype)


class Mlp(nn.Module):
    """Feed-forward block: input projections, each through its activation, multiplied together; then `wo`."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        """[..., emb] -> [..., emb]."""
        cfg = self.config
        hidden: Array | None = None
        for name, act in zip(cfg.mlp_inputs, cfg.mlp_activations, strict=True):
            y = activation(act)(Projection(cfg.mlp_dim, cfg.dtype, name=name)(x))
            hidden = y if hidden is None else hidden * y
        hidden = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic=deterministic)
        y = Projection(x.shape[-1], cfg.dtype, name="wo")(hidden)
        slot = self.get_variable("adapters", "parallel_mlp")
        return y if slot is None else y + parallel_delta(jnp.asarray(x, cfg.dtype), slot)


class Embedding(nn.Module):
    """The token embedding, by gather; also the output projection of models that tie the two."""

    config: T5Config

    def setup(self) -> None:
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = parameter(self, "embedding", nn.initializers.normal(1.0), shape)

    def __call__(self, tokens: Array) -> Array:
        """[...] token ids -> [..., emb] in the compute dtype."""
        return jnp.asarray(jnp.take(self.embedding, tokens, axis=0, mode="clip"), self.config.dtype)

    def attend(self, x: Array) -> Array:
        """[..., emb] -> [..., vocab] float32: dot products with every embedding, divided by sqrt(emb)."""
        scaled = jnp.asarray(x, jnp.float32) / math.sqrt(x.shape[-1])  # before: there are far fewer of them than logits
        return project(scaled, jnp.asarray(self.embedding, jnp.float32).T)
