"""Writing into a decoding cache, also under `vmap`."""

from __future__ import annotations

import functools

import jax
from jax.custom_batching import custom_vmap

from hyperflax.types import Array


def write_position(cache: Array, update: Array, index: Array, axis: int) -> Array:
    """Returns `cache` with `update` written from `index` on `axis` on; the index is one scalar, shared by all rows.

    JAX turns a `dynamic_update_slice` under `vmap` into a scatter. An index that is not mapped over leaves it a
    `dynamic_update_slice` of more rows, and that is what this function does: it stays an update in place.
    """
    return _writer(axis)(cache, update, index)


@functools.cache
def _writer(axis: int):
    @custom_vmap
    def write(cache: Array, update: Array, index: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(cache, update.astype(cache.dtype), index, axis)

    @write.def_vmap
    def rule(size: int, mapped: list[bool], cache: Array, update: Array, index: Array) -> tuple[Array, bool]:
        if mapped[2]:  # every row at its own place: nothing better than the scatter
            dims = [0 if is_mapped else None for is_mapped in mapped]
            plain = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
            return jax.vmap(plain, in_axes=dims)(cache, update.astype(cache.dtype), index), True
        cache, update = (
            x if is_mapped else jax.numpy.broadcast_to(x, (size, *x.shape))
            for x, is_mapped in zip((cache, update), mapped, strict=False)
        )
        if axis == 0:
            return _writer(1)(cache, update, index), True
        # The mapped axis goes into the first one. With one more dimension XLA on CPU writes twice, once for who reads
        # the new cache in this step and once for the next, and so has to copy the old one.
        joined = (x.reshape(-1, *x.shape[2:]) for x in (cache, update))
        return _writer(axis)(*joined, index).reshape(cache.shape), True

    return write
