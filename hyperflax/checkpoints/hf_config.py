"""Hugging Face's config.json of a T5, and the T5Config that computes the same.

T5 1.0, 1.1, the LM-adapted and Flan-T5 models, mT5, byT5 (`model_type` t5 or mt5: one position bias per stack) and umT5
(one per layer). A setting under which our T5 would compute something else is refused by name, never passed over.

Whether the output projection is the embedding table, divided by sqrt(d_model), or a matrix of its own, undivided, is
told by `tie_word_embeddings` alone up to transformers 4. Since version 5 that key is always true; T5 keeps the answer
in `scale_decoder_outputs`, mT5 never divides, and umT5 always does, which multiplies the logits of umT5's own models by
a constant that they were not trained with. Here umT5 follows its file: a matrix of its own is not divided.

>>> from_hf({"model_type": "t5", "d_model": 512, "feed_forward_proj": "gated-gelu", ...}, "config.json").mlp_activations
('gelu', 'linear')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.types import MAX_LAYERS, T5Config

ARCHITECTURES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}

# What transformers takes where a file says nothing; a file holds only what differs.
_SIZES = {
    "t5": {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "mt5": {"vocab_size": 250112, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "umt5": {"vocab_size": 250112, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
}
_FEED_FORWARD = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}
# Settings that our T5 has no field for, with the one value that it computes.
_FIXED = {
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
}

# flax's name of an activation, transformers' name. transformers' plain `gelu` is another function, the exact one.
# Of two names for one function the last is read.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "swish": "silu", "silu": "silu"}
_GATED_GELU = "gated-gelu"


def from_hf(data: Mapping[str, Any], where: str) -> T5Config:
    """Returns the configuration of a T5 that computes what transformers computes.

    Args:
      data: the content of config.json.
      where: the file, for errors.

    Raises:
      CheckpointError: another model, or a setting that our T5 cannot follow; names the key, what was expected and what
        came.
    """
    family = data.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise CheckpointError(f"{where}: key 'model_type': expected one of {sorted(ARCHITECTURES)}, got {family!r}")
    for key, value in _FIXED.items():
        if data.get(key, value) not in (value, [value]):  # transformers takes a list of ends of sequence as well
            raise CheckpointError(
                f"{where}: key '{key}': expected {value!r}, the value T5 computes with, got {data[key]!r}"
            )
    tied = data.get("scale_decoder_outputs", data.get("tie_word_embeddings", True))
    if not isinstance(tied, bool):
        raise CheckpointError(f"{where}: key 'tie_word_embeddings': expected true or false, got {tied!r:.100}")
    sizes = {name: data.get(name, default) for name, default in _SIZES[family].items()}
    decoder_layers = data.get("num_decoder_layers")
    for key, count in (("num_layers", sizes["num_layers"]), ("num_decoder_layers", decoder_layers)):
        if isinstance(count, int) and count > MAX_LAYERS:
            raise CheckpointError(f"{where}: key '{key}': expected at most {MAX_LAYERS} layers, got {count}")
    try:
        return T5Config(
            vocab_size=sizes["vocab_size"],
            emb_dim=sizes["d_model"],
            num_heads=sizes["num_heads"],
            head_dim=sizes["d_kv"],
            mlp_dim=sizes["d_ff"],
            num_encoder_layers=sizes["num_layers"],
            num_decoder_layers=sizes["num_layers"] if decoder_layers is None else decoder_layers,
            mlp_activations=_activations(data, family, where),
            dropout_rate=data.get("dropout_rate", 0.1),
            logits_via_embedding=tied and family != "mt5",
            relative_bias="per_layer" if family == "umt5" else "shared",
            num_buckets=data.get("relative_attention_num_buckets", 32),
            max_distance=data.get("relative_attention_max_distance", 128),
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def to_hf(config: T5Config, *, dtype: str = "float32") -> dict[str, Any]:
    """Returns the content of config.json for a model of this configuration.

    Args:
      config: of the T5; compute settings (dtype, scanning, rematerialisation) have no place there and do not matter.
      dtype: of the stored parameters.

    Raises:
      CheckpointError: activations that transformers' T5 does not have.
    """
    family = "umt5" if config.relative_bias == "per_layer" else "t5"
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout_rate,
        "feed_forward_proj": _feed_forward(config.mlp_activations),
        "tie_word_embeddings": config.logits_via_embedding,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": dtype,
    }


def _activations(data: Mapping[str, Any], family: str, where: str) -> tuple[str, ...]:
    feed_forward = data.get("feed_forward_proj", _FEED_FORWARD[family])
    known = {_feed_forward(names): names for name in _ACTIVATIONS for names in ((name,), (name, "linear"))}
    known["gated-gelu_new"] = known[_GATED_GELU]
    if not isinstance(feed_forward, str) or feed_forward not in known:
        raise CheckpointError(
            f"{where}: key 'feed_forward_proj': expected one of {sorted(known)}, got {feed_forward!r}"
        )
    found = known[feed_forward]
    # transformers takes these from `feed_forward_proj`, unless the file has them: then they count.
    for key, value in (("dense_act_fn", _ACTIVATIONS[found[0]]), ("is_gated_act", len(found) > 1)):
        if (got := data.get(key, value)) != value:
            raise CheckpointError(
                f"{where}: key '{key}': expected {value!r}, as feed_forward_proj {feed_forward!r} has it, got "
                f"{got!r:.100}"
            )
    return found


def _feed_forward(activations: tuple[str, ...]) -> str:
    name = _ACTIVATIONS.get(activations[0])
    if name is None or activations[1:] not in ((), ("linear",)):
        raise CheckpointError(
            f"mlp_activations {activations}: expected one of {sorted(_ACTIVATIONS)}, alone or followed by 'linear': "
            "transformers' T5 has no other feed-forward block"
        )
    if activations == ("gelu", "linear"):
        return _GATED_GELU
    return f"gated-{name}" if activations[1:] else name
