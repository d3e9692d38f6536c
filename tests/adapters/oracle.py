"""T5 with adapters in plain numpy float64, written from the papers: the reference for every kind.

Slow on purpose. LoRA is a dense matrix added to the kernel. A prefix is a list of further keys that every query of
every head visits in a Python loop, a soft prompt further rows of the input. Nothing is shared with the library but the
names of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hyperflax.types import T5Config

Flat = Mapping[str, np.ndarray]


def logits(params: Flat, adapters: Flat, config: T5Config, encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """One row at a time: encoder [batch, s], decoder [batch, t] token ids to [batch, t, vocab]."""
    params = {path: np.asarray(x, np.float64) for path, x in params.items()}
    adapters = {path: np.asarray(x, np.float64) for path, x in adapters.items()}
    for path, delta in adapters.items():
        module, reader, name = path.rsplit("/", 2)
        if reader == "full":
            params[f"{module}/{name}"] = params[f"{module}/{name}"] + delta.sum(0)
    net = _Net(params, adapters, config)
    return np.stack([net.row(source, target) for source, target in zip(encoder, decoder, strict=True)])


def bucket(distance: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, section 2.1; `distance` = key position - query position."""
    base = 0
    if bidirectional:
        buckets //= 2
        base = buckets if distance > 0 else 0
        distance = -abs(distance)
    behind = max(-distance, 0)
    exact = buckets // 2
    if behind < exact:
        return base + behind
    steps = math.log(behind / exact) / math.log(max_distance / exact) * (buckets - exact)
    return base + min(exact + int(steps), buckets - 1)


class _Net:
    def __init__(self, params: Flat, adapters: Flat, config: T5Config):
        self.params, self.adapters, self.config = params, adapters, config

    def row(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        prompt = self.adapters.get("encoder/soft_prompt/embedding", np.zeros((0, self.config.emb_dim)))
        mask = self.adapters.get("encoder/soft_prompt/mask", np.ones(len(prompt)))
        real = [bool(kept) for kept in mask] + [bool(token) for token in source]
        x = np.concatenate([prompt, self.params["token_embedder/embedding"][source]])
        for i in range(self.config.num_encoder_layers):
            layer = f"encoder/layers_{i}"
            h = self.norm(f"{layer}/pre_attention_layer_norm", x)
            x = x + self.attention(f"{layer}/attention", h, h, real, stack="encoder")
            x = x + self.mlp(f"{layer}/mlp", self.norm(f"{layer}/pre_mlp_layer_norm", x))
        encoded = self.norm("encoder/encoder_norm", x)
        y = self.params["token_embedder/embedding"][target]
        for i in range(self.config.num_decoder_layers):
            layer = f"decoder/layers_{i}"
            h = self.norm(f"{layer}/pre_self_attention_layer_norm", y)
            y = y + self.attention(f"{layer}/self_attention", h, h, [True] * len(target), stack="decoder")
            h = self.norm(f"{layer}/pre_cross_attention_layer_norm", y)
            y = y + self.attention(f"{layer}/encoder_decoder_attention", h, encoded, real, stack=None)
            y = y + self.mlp(f"{layer}/mlp", self.norm(f"{layer}/pre_mlp_layer_norm", y))
        return self.norm("decoder/decoder_norm", y) @ self.params["decoder/logits_dense/kernel"]

    def norm(self, path: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.params[f"{path}/scale"]

    def kernel(self, path: str) -> np.ndarray:
        kernel = self.params[f"{path}/kernel"]
        if f"{path}/lora/a" in self.adapters:
            kernel = kernel + self.adapters[f"{path}/lora/a"] @ self.adapters[f"{path}/lora/b"]
        return kernel

    def mlp(self, path: str, x: np.ndarray) -> np.ndarray:
        gate = x @ self.kernel(f"{path}/wi_0")
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        y = (gate * (x @ self.kernel(f"{path}/wi_1"))) @ self.kernel(f"{path}/wo")
        if f"{path}/parallel_mlp/down" in self.adapters:
            units = x @ self.adapters[f"{path}/parallel_mlp/down"]
            y = y + np.where(units > 0, units, 0) @ self.adapters[f"{path}/parallel_mlp/up"]
        return y

    def attention(
        self, path: str, x: np.ndarray, source: np.ndarray, real: list[bool], stack: str | None
    ) -> np.ndarray:
        heads, width = self.config.num_heads, self.config.head_dim
        q, k, v = (
            (inputs @ self.kernel(f"{path}/{name}")).reshape(len(inputs), heads, width)
            for name, inputs in (("query", x), ("key", source), ("value", source))
        )
        out = np.zeros((len(x), heads, width))
        for i in range(len(x)):
            for h in range(heads):
                scores, values = [], []
                for key, value, position in self.prefix(path, h):
                    scores.append(q[i, h] @ key + (0.0 if position is None else self.bias(stack, h, position - i)))
                    values.append(value)
                for j in range(len(source)):
                    if real[j] and not (stack == "decoder" and j > i):
                        scores.append(q[i, h] @ k[j, h] + self.bias(stack, h, j - i))
                        values.append(v[j, h])
                weights = np.exp(np.array(scores) - max(scores))
                out[i, h] = (weights / weights.sum()) @ np.array(values)
        return out.reshape(len(x), heads * width) @ self.kernel(f"{path}/out")

    def prefix(self, path: str, head: int) -> list[tuple[np.ndarray, np.ndarray, int | None]]:
        """Key, value and position of everything that stands in front; position None has no bias."""
        found = []
        for reader in ("prefix", "preceding_prefix"):
            key = self.adapters.get(f"{path}/{reader}/key", np.zeros((0, self.config.num_heads, self.config.head_dim)))
            mask = self.adapters.get(f"{path}/{reader}/mask", np.ones(len(key)))
            for j in np.flatnonzero(mask):
                position = j - len(key) if reader == "preceding_prefix" else None
                found.append((key[j, head], self.adapters[f"{path}/{reader}/value"][j, head], position))
        return found

    def bias(self, stack: str | None, head: int, distance: int) -> float:
        if stack is None:
            return 0.0
        table = self.params[f"{stack}/relpos_bias/rel_embedding"]
        return table[head, bucket(distance, stack == "encoder", self.config.num_buckets, self.config.max_distance)]
