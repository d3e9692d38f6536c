"""Names of a T5's parts in T5X's tree and in Hugging Face's T5ForConditionalGeneration.

    encoder/layers_3/attention/query/kernel [in, out]    encoder.block.3.layer.0.SelfAttention.q.weight [out, in]
    decoder/layers_0/mlp/wi_0/kernel                     decoder.block.0.layer.2.DenseReluDense.wi_0.weight
    encoder/relpos_bias/rel_embedding                    encoder.block.0.layer.0.SelfAttention.relative_attention_bias

Matrices stand transposed there, all but the embedding table. A bias that the layers of a stack share lies in block 0;
umT5 has one in every block. PEFT names modules by the same rules.

>>> module_name("decoder/layers_1/self_attention/out")
'decoder.block.1.layer.0.SelfAttention.o'
>>> module_path("decoder.block.1.layer.0.SelfAttention.o")
'decoder/layers_1/self_attention/out'
"""

from __future__ import annotations

import dataclasses
import re

from hyperflax.checkpoints.shapes import Shape, expected_shapes
from hyperflax.types import T5Config

SHARED = "shared.weight"
HEAD = "lm_head.weight"

# The parts of a layer: T5X's name on the left, the number of the block's sublayer and its module on the right.
_PARTS = {
    "encoder": {
        "pre_attention_layer_norm": "layer.0.layer_norm",
        "attention": "layer.0.SelfAttention",
        "pre_mlp_layer_norm": "layer.1.layer_norm",
        "mlp": "layer.1.DenseReluDense",
    },
    "decoder": {
        "pre_self_attention_layer_norm": "layer.0.layer_norm",
        "self_attention": "layer.0.SelfAttention",
        "pre_cross_attention_layer_norm": "layer.1.layer_norm",
        "encoder_decoder_attention": "layer.1.EncDecAttention",
        "pre_mlp_layer_norm": "layer.2.layer_norm",
        "mlp": "layer.2.DenseReluDense",
    },
}
_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_BIAS = "layer.0.SelfAttention.relative_attention_bias"
_OUTSIDE = {
    "token_embedder/embedding": SHARED,
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits_dense/kernel": HEAD,
    "encoder/relpos_bias/rel_embedding": f"encoder.block.0.{_BIAS}.weight",
    "decoder/relpos_bias/rel_embedding": f"decoder.block.0.{_BIAS}.weight",
}
_LAYER = re.compile(r"(encoder|decoder)/layers_([0-9]+)/([a-z_]+)(?:/([a-z0-9_]+))?")
_BLOCK = re.compile(r"(encoder|decoder)\.block\.(0|[1-9][0-9]{0,3})\.(layer\.[0-2]\.[A-Za-z_]+)(?:\.([a-z0-9_]+))?")
_PATHS = {stack: {module: part for part, module in parts.items()} for stack, parts in _PARTS.items()}
_LETTERS = {letter: name for name, letter in _PROJECTIONS.items()}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter in both worlds.

    Attributes:
      path: in T5X's tree, `encoder/layers_0/attention/query/kernel`.
      name: in Hugging Face's, `encoder.block.0.layer.0.SelfAttention.q.weight`.
      shape: in Hugging Face's layout.
      transposed: whether T5X's array is the transpose.
    """

    path: str
    name: str
    shape: Shape
    transposed: bool


def module_name(path: str) -> str:
    """Returns Hugging Face's name of a module inside a layer. Raises KeyError for what no T5 has."""
    match = _LAYER.fullmatch(path)
    if match is None:
        raise KeyError(path)
    stack, layer, part, inner = match.groups()
    if part == "relpos_bias":
        return f"{stack}.block.{layer}.{_BIAS}"
    module = f"{stack}.block.{layer}.{_PARTS[stack][part]}"
    return module if inner is None else f"{module}.{_PROJECTIONS.get(inner, inner)}"


def module_path(name: str) -> str | None:
    """The inverse of `module_name` for projections; None for any other module."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    stack, layer, module, inner = match.groups()
    part = _PATHS[stack].get(module)
    if part is None or inner is None:
        return None
    if part == "mlp":
        return f"{stack}/layers_{layer}/mlp/{inner}" if re.fullmatch(r"wo|wi(_[01])?", inner) else None
    return f"{stack}/layers_{layer}/{part}/{_LETTERS[inner]}" if inner in _LETTERS else None


def weights(config: T5Config) -> list[Weight]:
    """Returns every parameter of a T5 of this configuration, layers unrolled whatever `config.scan_layers` says."""
    found = []
    for path, shape in expected_shapes(config.replace(scan_layers=False)).items():
        transposed = len(shape) == 2 and path != "token_embedder/embedding"
        name = _OUTSIDE.get(path) or f"{module_name(path.rpartition('/')[0])}.weight"
        found.append(Weight(path, name, shape[::-1] if transposed else shape, transposed))
    return found
