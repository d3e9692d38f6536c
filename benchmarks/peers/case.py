"""What a comparison is made of: entries, the cases that they belong to, and the ratios that are reported.

An *entry* is one piece of work on one side. The entries of a *case* are timed in turns, round by round, and a *ratio*
compares two of them round by round, so that whatever else the machine does falls on both. Entries that do the same work
on different sides have the same weights, adapters and tokens, and are held to the same result (`agreement.py`).

>>> ours = Entry("hyperflax", "decode", rows=8)
>>> theirs = ours.on("transformers")
>>> faster = Ratio("hyperflax is faster", "theirs", "ours", least=2.0)
>>> Case("Greedy decoding", {"ours": ours, "theirs": theirs}, (faster,)).digest()
'3f0c...'
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from hyperflax import configs
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.models import flops
from hyperflax.types import T5Config

Side = Literal["hyperflax", "transformers", "t5x_gather", "t5x"]
SIDES: tuple[Side, ...] = ("hyperflax", "transformers", "t5x_gather", "t5x")

SMALL = T5Config(vocab_size=32128)
"""T5.1.1-small: 76,961,152 parameters."""

ADAPTERS: dict[str, KindConfig] = {
    "lora8": LoRA(rank=8),
    "lora16_all": LoRA(rank=16, alpha=16.0, sites=("*",)),
    "prefix16": Prefix(length=16),
    # The one place that PEFT can give a T5 a prefix.
    "decoder_prefix16": Prefix(length=16, position_bias="preceding", sites=("decoder/self_attention",)),
}

MATRIX = 2048  # rows and columns of the product that the machine's rate is taken from


@dataclasses.dataclass(frozen=True)
class Entry:
    """One piece of work; a program takes from it what it needs.

    Attributes:
      side: who does it.
      program: what is done; the modules of the sides have a function of this name.
      rows, source, target: examples, tokens of each input, and of each target or output.
      layers: of the encoder, and of the decoder.
      beams: 1 is greedy.
      adapter: name in `ADAPTERS`; "" is the bare model.
      adapters: how many different ones there are.
      support: tokens of the support that a hypernetwork reads, or that stand before every input.
      command: of a program that starts a process.
    """

    side: Side
    program: str
    rows: int = 8
    source: int = 256
    target: int = 64
    layers: int = 8
    beams: int = 1
    adapter: str = ""
    adapters: int = 0
    support: int = 0
    command: str = ""

    def on(self, side: Side) -> Entry:
        """The same work on another side."""
        return dataclasses.replace(self, side=side)

    def t5(self, shape: T5Config) -> T5Config:
        """Returns the shape of the base model."""
        return shape.replace(num_encoder_layers=self.layers, num_decoder_layers=self.layers)

    def work(self, shape: T5Config) -> tuple[int, str]:
        """Returns how much is done in one call, and its unit: floating-point operations or decoded tokens, if either.

        The operations are those of `models/flops.py`: no more than the work needs, on whatever side.
        """
        if self.program == "matmul":
            return 2 * MATRIX**3, "flop"
        if self.program in ("train_full", "train_lora"):
            forward = flops.t5(self.t5(shape), self.rows, self.source, self.target)
            return forward.trained if self.program == "train_full" else forward.frozen, "flop"
        if self.program.startswith("decode"):
            return self.rows * self.target, "token"
        return 1, ""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Seconds of one entry over those of another.

    Attributes:
      says: what it means.
      over, under: names of the entries.
      rates: their rates are compared instead: that of `under` over that of `over`.
      least, most: the target, if there is one; the tables say where the median misses it, and no test does.
    """

    says: str
    over: str
    under: str
    rates: bool = False
    least: float | None = None
    most: float | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Entries that are timed in turns.

    Attributes:
      says: what is measured, for people.
      entries: by name.
      ratios: what is reported of them.
      most_seconds: name of an entry -> the target of its seconds, as of a ratio's.
      x: what grows along the curves, if there are any.
      curves: label -> {x: name of the entry}.
      crossing: two labels; reported is where the first one's seconds come to exceed the second one's.
      rounds: how often each entry is timed.
      shape: of the base model; entries say how deep it is.
    """

    says: str
    entries: Mapping[str, Entry]
    ratios: tuple[Ratio, ...] = ()
    most_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    x: str = ""
    curves: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)
    crossing: tuple[str, str] | None = None
    rounds: int = 5
    shape: T5Config = SMALL

    def digest(self) -> str:
        """Returns the hash of everything that decides the seconds; what is said of them is not in it."""
        content = {
            "shape": configs.to_json(self.shape),
            "rounds": self.rounds,
            "entries": {name: configs.to_json(entry) for name, entry in self.entries.items()},
            "adapters": {e.adapter: repr(ADAPTERS[e.adapter]) for e in self.entries.values() if e.adapter},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def quick(case: Case) -> Case:
    """Returns the same case so small that it takes seconds: to see that everything runs, not how fast."""
    most = {"rows": 3, "source": 12, "target": 4, "layers": 2, "beams": 2, "adapters": 3, "support": 16}

    def smaller(entry: Entry) -> Entry:
        sizes: dict[str, Any] = {name: min(getattr(entry, name), size) for name, size in most.items()}
        return dataclasses.replace(entry, **sizes)

    shape = T5Config(vocab_size=512, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)
    entries = {name: smaller(entry) for name, entry in case.entries.items()}
    return dataclasses.replace(case, shape=shape, rounds=2, entries=entries)
