"""Prefix tuning between our adapter tree and PEFT's one matrix.

PEFT keeps `prompt_embeddings` [length, num_layers * 2 * token_dim]: for each position, num_layers pairs of a key and a
value, token_dim = heads * head_dim. On an encoder-decoder it hands layer i of the decoder's self-attention not pair i
but pair 2 i modulo num_layers (it lays the pairs out twice, for self- and cross-attention, splits them into groups of
two pairs, and then empties the cross-attention's cache). With num_layers equal to an even number of decoder layers,
half of the pairs reach nobody and two layers share each of the others. But `num_layers` is only a setting: with an
**odd** one, no smaller than the number of decoder layers, 2 i mod num_layers differs for every i and every layer has
its own pair. That is the layout written here; the surplus pair, if any, is zero and read by no layer.

The encoder and the cross-attention get nothing, and the prefix stands before the sequence in T5's relative positions:
only `position_bias="preceding"` in the self-attention of every decoder layer can be expressed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hyperflax.adapters.kinds import groups
from hyperflax.adapters.prefix import READERS, Prefix, prefix_leaves
from hyperflax.adapters.sites import Place
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.checkpoints.peft_content import CONFIG, Content
from hyperflax.errors import AdapterError

_WEIGHT = "prompt_embeddings"
_READER = READERS["preceding"]
_SITE = "decoder/layers_{}/self_attention"
# A setting of PEFT that makes another model of the same weights.
_SUBMODULES = 2


def pair_of(layer: int, num_layers: int) -> int:
    """Returns the number of the pair that PEFT hands to a decoder layer."""
    return 2 * layer % num_layers


def export_prefix(flat: Mapping[str, np.ndarray], spec: AdapterSpec, decoder_layers: int | None) -> Content:
    """Returns prefixes in PEFT's form.

    Raises:
      AdapterError: a prefix that PEFT cannot express, by site: elsewhere than in the decoder's self-attention, without
        position bias, with masked positions, of different lengths, or not in every layer, as far as one knows.
    """
    layers = []
    for slot, leaves in groups(spec).items():
        module, reader = leaves[0].module, leaves[0].reader
        if not module.startswith("decoder/") or not module.endswith("/self_attention"):
            raise AdapterError(
                f"PEFT cannot express the prefix at '{slot}': on T5 it reaches the decoder's self-attention only"
            )
        if reader != _READER:
            raise AdapterError(
                f"PEFT cannot express the prefix at '{slot}': it gives the keys relative positions before the "
                "sequence, so only position_bias='preceding' is the same; this one has 'zero'"
            )
        if not np.all(flat.get(f"{slot}/mask", np.ones(1)) == 1):
            raise AdapterError(
                f"PEFT cannot express the prefix at '{slot}': it has no mask, and positions are masked here"
            )
        layers.append(leaves[0].layer)
    depth = max(max(layers) + 1, decoder_layers or 0)
    if missing := sorted(set(range(depth)) - set(layers)):
        raise AdapterError(
            f"PEFT cannot express the prefix at '{_SITE.format(layers[0])}' alone: it gives one to every decoder "
            f"layer, and layers {missing} have none here"
        )
    keys = [flat[f"{_SITE.format(layer)}/{_READER}/key"] for layer in range(depth)]
    values = [flat[f"{_SITE.format(layer)}/{_READER}/value"] for layer in range(depth)]
    length, heads, head_dim = keys[0].shape
    for layer, key in enumerate(keys):
        if key.shape != keys[0].shape:
            raise AdapterError(
                f"PEFT cannot express the prefix at '{_SITE.format(layer)}': it gives all layers one length, and shape "
                f"{key.shape} differs from layer 0's {keys[0].shape}"
            )
    if decoder_layers is None and any(isinstance(kind, Prefix) and kind.layers is not None for kind in spec.kinds):
        raise AdapterError(
            f"PEFT cannot express the prefix at '{_SITE.format(layers[0])}' alone: it gives one to every decoder "
            f"layer, and the base model (--base) tells whether it has more than these {depth}"
        )
    num_layers = depth if depth % 2 else depth + 1
    pairs = np.zeros((length, num_layers, 2, heads * head_dim), np.float32)
    for layer in range(depth):
        pair = pair_of(layer, num_layers)
        pairs[:, pair, 0] = keys[layer].reshape(length, -1)
        pairs[:, pair, 1] = values[layer].reshape(length, -1)
    settings = {
        "num_virtual_tokens": length,
        "token_dim": heads * head_dim,
        "num_attention_heads": heads,
        "num_layers": num_layers,
        "num_transformer_submodules": _SUBMODULES,
        "encoder_hidden_size": heads * head_dim,
        "prefix_projection": False,
    }
    return Content(settings, {_WEIGHT: pairs.reshape(length, -1)})


def import_prefix(content: Content, decoder_layers: int | None) -> tuple[dict[str, np.ndarray], AdapterSpec]:
    """Returns our leaves by path, and their spec: what each decoder layer gets from PEFT, repetitions included.

    Where nobody knows how many layers the decoder has, they are taken to be `num_layers`.

    Raises:
      AdapterError: settings or shapes that contradict each other, or that T5 does not run with.
    """
    matrix, submodules = content.only(_WEIGHT), content.settings.get("num_transformer_submodules")
    length, width = content.size("num_virtual_tokens"), content.size("token_dim")
    heads, num_layers = content.size("num_attention_heads"), content.size("num_layers")
    if submodules != _SUBMODULES:
        raise AdapterError(
            f"{CONFIG}: key 'num_transformer_submodules': expected {_SUBMODULES}, an encoder-decoder's, "
            f"got {submodules!r:.100}"
        )
    expected = (length, num_layers * 2 * width)
    if matrix.shape != expected or width % heads:
        raise AdapterError(
            f"weight '{_WEIGHT}': expected shape {expected} and a token_dim that {heads} heads divide, found "
            f"{matrix.shape}"
        )
    pairs = matrix.reshape(length, num_layers, 2, heads, width // heads)
    depth = decoder_layers or num_layers
    if depth > num_layers:
        raise AdapterError(f"{CONFIG}: key 'num_layers': expected at least {depth}, the decoder's, got {num_layers}")
    config = Prefix(length=length, position_bias="preceding")
    flat: dict[str, np.ndarray] = {}
    leaves: list[Leaf] = []
    optional: list[Leaf] = []
    for layer in range(depth):
        *slot, mask = prefix_leaves(config, Place("decoder", layer, "self_attention"), heads, width // heads)
        for part, leaf in enumerate(slot):
            flat[leaf.path] = np.ascontiguousarray(pairs[:, pair_of(layer, num_layers), part])
        leaves += slot
        optional.append(mask)
    return flat, AdapterSpec(tuple(leaves), optional=tuple(optional))
