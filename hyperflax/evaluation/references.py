"""The systems that a hypermodel is compared with, and what each of them was trained on.

>>> references = References.load(model, shared="runs/shared", mtf="runs/mtf", mtf_zero_shot=None)
>>> Conditions(model, held_out, **references.systems)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import load_base, read_provenance

if TYPE_CHECKING:
    from hyperflax.hypermodel import Hypermodel


@dataclasses.dataclass(frozen=True)
class References:
    """One shared adapter and fine-tuned T5s, as far as they were asked for.

    Attributes:
      systems: arguments of `Conditions`.
      described: their fingerprints, for the report.
      trained_on: `{who, in words: provenance}`, the hypermodel's own among them; it may hold a record of tasks.
    """

    systems: Mapping[str, Any]
    described: Mapping[str, str]
    trained_on: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, model: Hypermodel, shared: str | None, mtf: str | None, mtf_zero_shot: str | None) -> References:
        """Reads their directories.

        Raises:
          CheckpointError: one that is broken, or a T5 of another shape or vocabulary than the model's base.
        """
        systems: dict[str, Any] = {}
        described: dict[str, str] = {}
        trained_on = {f"what '{model.parts.name}' was trained on": model.parts.provenance}
        if shared:
            adapter = load_adapter(shared)
            systems["shared"], described["shared"] = adapter, fingerprint(adapter.tree)
            trained_on[f"what the shared adapter '{shared}' was trained on"] = adapter.metadata.provenance
        for name, directory in {"mtf": mtf, "mtf_zero_shot": mtf_zero_shot}.items():
            if directory:
                fine_tuned = model.with_base(load_base(directory, model.config.base, model.config.vocabulary))
                systems[name], described[name] = fine_tuned, fine_tuned.base_fingerprint
                trained_on[f"what the fine-tuned T5 '{directory}' was trained on"] = read_provenance(directory)
        return cls(systems, described, trained_on)
