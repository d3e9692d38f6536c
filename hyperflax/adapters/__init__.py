"""Adapters: data that a frozen model reads while it runs.

- `spec.py`: `AdapterSpec` and `Leaf`, the one description that everything else goes by;
- `lora.py`, `prefix.py`, `soft_prompt.py`, `parallel_mlp.py`, `full.py`: one file per kind; `kinds.py`: all of them,
  `build_spec`, `check_spec`;
- `algebra.py`: stack, interpolate, merge, pad; `layers.py`: scanned and unrolled.
"""

from hyperflax.adapters.algebra import interpolate, merge, pad, stack, stack_padded, unstack
from hyperflax.adapters.full import Full
from hyperflax.adapters.kinds import KINDS, build_spec, check_spec
from hyperflax.adapters.layers import arrange, stack_layers, unstack_layers
from hyperflax.adapters.lora import LoRA, lora_delta, lora_spec
from hyperflax.adapters.parallel_mlp import ParallelMLP
from hyperflax.adapters.prefix import Prefix, prefix_spec
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec, Leaf

__all__ = [
    "KINDS",
    "AdapterSpec",
    "Full",
    "Leaf",
    "LoRA",
    "ParallelMLP",
    "Prefix",
    "SoftPrompt",
    "arrange",
    "build_spec",
    "check_spec",
    "interpolate",
    "lora_delta",
    "lora_spec",
    "merge",
    "pad",
    "prefix_spec",
    "stack",
    "stack_layers",
    "stack_padded",
    "unstack",
    "unstack_layers",
]
