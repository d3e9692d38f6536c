"""A small adapter and a small hypermodel to write and damage."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from hyperflax import configs, trees
from hyperflax.adapters import AdapterSpec, LoRA, Prefix, build_spec
from hyperflax.checkpoints import AdapterMetadata, ModelParts, fingerprint
from hyperflax.checkpoints.shapes import expected_shapes
from hyperflax.types import T5Config

CONFIG = T5Config(
    vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1, num_decoder_layers=1
)


def random_tree(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return trees.unflatten({path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})


def base(seed: int = 0) -> dict[str, Any]:
    return random_tree(expected_shapes(CONFIG), seed)


def spec() -> AdapterSpec:
    return build_spec((LoRA(rank=2), Prefix(length=3)), CONFIG)


def adapter_tree(seed: int = 1) -> dict[str, Any]:
    return random_tree({leaf.path: leaf.shape for leaf in spec().leaves}, seed)


def metadata(**changes: Any) -> AdapterMetadata:
    fields = {
        "base_fingerprint": fingerprint(base()),
        "hypermodel": "small@0123456789ab",
        "support_hash": "sha256:" + "ab" * 32,
        "refine_steps": 3,
        "created_with": "hyperflax adapt --model small",
        "provenance": {"note": "made by a test"},
    }
    return AdapterMetadata(**{**fields, **changes})


def model_parts(**changes: Any) -> ModelParts:
    fields = {
        "name": "small",
        "t5": json.loads(json.dumps(configs.to_json(CONFIG))),
        "base": base(),
        "hypernetwork_class": "HyperT5",
        "hypernetwork_config": {"layers": 2, "fusion": "joint"},
        "hypernetwork_params": random_tree({"slots/embedding": (3, 4), "head/kernel": (4, 5)}, 2),
        "spec": spec(),
        "vocabulary": {"kind": "bytes", "extra_ids": 0},
        "episode": {"shots": 4},
        "results": {"exact_match": 0.75, "curve": [1, 2, 3]},
        "provenance": {"data": "strings"},
        "created_with": "hyperflax train",
        "files": {"vocabulary.model": b"\0\1pieces"},
    }
    return ModelParts(**{**fields, **changes})


def edit_json(file: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
