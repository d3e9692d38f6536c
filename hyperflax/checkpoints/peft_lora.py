"""LoRA between our adapter tree and PEFT's weights.

    ours    y = x W + (x a) b                              a [in, rank], b [rank, out], alpha / rank folded into b
    PEFT    y = x W + scaling * lora_B(lora_A(x))          lora_A [rank, in], lora_B [out, rank]
            scaling = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; r and lora_alpha per module by patterns

Outwards `lora_alpha` is set to the rank, so scaling is 1 and no value is touched: `lora_B` has the bits of `b`. Inwards
the scaling goes into `b`.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperflax.adapters.checks import is_int, is_number
from hyperflax.adapters.kinds import groups
from hyperflax.adapters.lora import LoRA, lora_leaves
from hyperflax.adapters.sites import Projection
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.checkpoints.hf_names import module_name, module_path
from hyperflax.checkpoints.peft_content import CONFIG, Content
from hyperflax.errors import AdapterError

_PREFIX = "base_model.model."
_LARGEST_ALPHA = 10**9  # far beyond what anybody trains with, and far below where float32 ends
_KEY = re.compile(re.escape(_PREFIX) + r"(.+)\.(lora_A|lora_B)\.weight")

# Settings of PEFT under which the two matrices do not tell everything. Any other value than these is refused.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
# Ways to start that leave the base model's weights alone, by PEFT's LoraLayer.update_layer. PiSSA, OLoRA, CorDA, LoftQ
# and LoRA-GA change them: their two matrices mean nothing without what was taken from the base.
_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")


def export_lora(flat: Mapping[str, np.ndarray], spec: AdapterSpec, decoder_layers: int | None) -> Content:
    """Returns LoRA in PEFT's form.

    Raises:
      AdapterError: a module that is no projection of a T5 layer.
    """
    weights, ranks = {}, {}
    for leaves in groups(spec).values():
        module = leaves[0].module
        name = _module_name(module)
        a, b = flat[f"{module}/lora/a"], flat[f"{module}/lora/b"]
        weights |= {f"{_PREFIX}{name}.lora_A.weight": a.T, f"{_PREFIX}{name}.lora_B.weight": b.T}
        ranks[name] = a.shape[1]
    usual = collections.Counter(ranks.values()).most_common(1)[0][0]
    unusual = {name: rank for name, rank in ranks.items() if rank != usual}
    # Names in full: a shorter one, such as `q`, would also choose the modules of other layers and stacks. PEFT takes
    # the keys of a pattern as regular expressions.
    pattern = {re.escape(name): rank for name, rank in unusual.items()}
    settings = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    return Content(settings, weights)


def _module_name(module: str) -> str:
    try:
        name = module_name(module)
    except KeyError:
        name = ""
    if module_path(name) != module:
        raise AdapterError(f"module '{module}': expected a projection in a layer of T5, PEFT has no name for it")
    return name


def import_lora(content: Content, decoder_layers: int | None) -> tuple[dict[str, np.ndarray], AdapterSpec]:
    """Returns our leaves by path, and their spec; the weights themselves name the layers.

    Raises:
      AdapterError: a variant of LoRA that two matrices per projection do not express, a weight that is no part of it,
        or shapes and ranks that contradict each other.
    """
    config = content.settings
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise AdapterError(f"{CONFIG}: key '{key}': expected {plain[0]!r}, got {config[key]!r:.100}")
    if (start := config.get("init_lora_weights", True)) not in _STARTS:
        raise AdapterError(
            f"{CONFIG}: key 'init_lora_weights': expected one of {_STARTS}, which leave the base as it "
            f"is, got {start!r:.100}; PEFT's save_pretrained(OUT, path_initial_model_for_weight_conversion=START), "
            "START holding the adapter before training, makes plain LoRA of PiSSA, OLoRA, CorDA and LoRA-GA"
        )
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, array in content.weights.items():
        match = _KEY.fullmatch(name)
        if match is None or module_path(match[1]) is None:
            raise AdapterError(
                f"weight '{name}': expected '{_PREFIX}MODULE.lora_A.weight' or lora_B of a projection in a layer of T5"
            )
        if array.ndim != 2 or 0 in array.shape:
            raise AdapterError(f"weight '{name}': expected a matrix, found shape {array.shape}")
        pairs.setdefault(match[1], {})[match[2]] = array
    if not pairs:
        raise AdapterError("expected at least one weight, found none")
    flat: dict[str, np.ndarray] = {}
    leaves: list[Leaf] = []
    for module, pair in pairs.items():
        for half in ("lora_A", "lora_B"):
            if half not in pair:
                raise AdapterError(f"weight '{_PREFIX}{module}.{half}.weight': missing, its other half is there")
        a, b = pair["lora_A"].T, pair["lora_B"].T
        rank, scaling = _scaling(module, config)
        if a.shape[1] != rank or b.shape[0] != rank:
            raise AdapterError(
                f"weight '{_PREFIX}{module}.lora_A.weight': expected rank {rank} as adapter_config.json says, found "
                f"{a.shape[1]} and {b.shape[0]} in lora_B"
            )
        path = module_path(module)
        flat |= {
            f"{path}/lora/a": np.ascontiguousarray(a),
            f"{path}/lora/b": np.ascontiguousarray(b * np.float32(scaling)),
        }
        place = _place(path, a.shape[0], b.shape[1])  # pyrefly: ignore[bad-argument-type]  # looked at above
        leaves += lora_leaves(LoRA(rank=rank, alpha=rank), place)
    return flat, AdapterSpec(tuple(leaves))


def _scaling(module: str, config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and scaling of one module, by PEFT's rules: the first pattern that matches the end of its name counts."""
    rank = _by_pattern(module, config, "rank_pattern", "r", 8)
    alpha = _by_pattern(module, config, "alpha_pattern", "lora_alpha", 8)
    if not is_int(rank) or rank < 1:
        raise AdapterError(f"{CONFIG}: rank of '{module}': expected a positive int, got {rank!r}")
    if not is_number(alpha) or abs(alpha) > _LARGEST_ALPHA:
        raise AdapterError(
            f"{CONFIG}: lora_alpha of '{module}': expected a number up to {_LARGEST_ALPHA:.0e}, got {alpha!r:.100}"
        )
    rslora = config.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise AdapterError(f"{CONFIG}: key 'use_rslora': expected true or false, got {rslora!r}")
    return rank, alpha / (math.sqrt(rank) if rslora else rank)


def _by_pattern(module: str, config: Mapping[str, Any], patterns: str, usual: str, default: int) -> Any:
    table = config.get(patterns) or {}
    if not isinstance(table, Mapping):
        raise AdapterError(f"{CONFIG}: key '{patterns}': expected an object, got {type(table).__name__}")
    for pattern, value in table.items():
        # The file may come from anybody: an expression with groups and many repetitions can search for years.
        if len(pattern) > 200 or "(" in pattern or sum(pattern.count(sign) for sign in "*+?{") > 2:
            raise AdapterError(f"{CONFIG}: key '{patterns}': expected a simple pattern, got {pattern!r:.100}")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise AdapterError(f"{CONFIG}: key '{patterns}': {pattern!r:.100}: {error}") from error
    return config.get(usual, default)


def _place(path: str, in_dim: int, out_dim: int) -> Projection:
    """The projection that is called so; see `adapters.sites.projections`."""
    stack, layer, part, name = path.split("/")
    inner = "mlp" if part == "mlp" else "joined_kv"
    into, out_of = (inner, "embed") if name in ("out", "wo") else ("embed", inner)
    return Projection(stack, int(layer.removeprefix("layers_")), f"{part}/{name}", in_dim, out_dim, into, out_of)
