"""Adapters that hyperflax writes for PEFT, with values that nobody could confuse: every layer has its own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from hyperflax.adapters import LoRA, Prefix, SoftPrompt, build_spec
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.hf_config import from_hf
from hyperflax.checkpoints.peft import write_peft
from tests.adapters.micro import random_tree
from tests.interop.families import FAMILIES

BASE = "sha256:" + "0123456789abcdef" * 4
METADATA = AdapterMetadata(
    base_fingerprint=BASE, hypermodel="small@0123456789ab", support_hash="sha256:" + "ab" * 32, refine_steps=3
)

KINDS: dict[str, tuple[str, tuple[KindConfig, ...]]] = {
    "lora_everywhere": ("t5_1_1", (LoRA(rank=3, alpha=2.0, sites=("*",)),)),
    "lora_two_ranks": ("t5_1_0", (LoRA(rank=2, layers=(0,)), LoRA(rank=5, alpha=1.0, sites=("*/wi",), layers=(1,)))),
    # Three decoder layers, and two: PEFT gives layer i the pair 2 i modulo the number of pairs.
    "prefix_odd": ("umt5", (Prefix(length=3, position_bias="preceding", sites=("decoder/self_attention",)),)),
    "prefix_even": ("byt5", (Prefix(length=4, position_bias="preceding", sites=("decoder/self_attention",)),)),
    "prompt": ("t5_1_0", (SoftPrompt(length=5),)),
}
"""The model's family and the kinds, by name."""


def adapter(name: str) -> Adapter:
    family, kinds = KINDS[name]
    spec = build_spec(kinds, from_hf(FAMILIES[family], family))
    return Adapter(random_tree(spec, seed=3), spec, METADATA)


def _writer(name: str) -> Callable[[pathlib.Path], None]:
    return lambda folder: write_peft(folder, adapter(name), base_name=KINDS[name][0])


EXPORTED = {name: (family, _writer(name)) for name, (family, _) in KINDS.items()}
"""The model's family and what writes the adapter to a folder, by name."""
