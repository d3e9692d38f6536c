"""What a hypermodel is made of, and which hypernetworks there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hyperflax.adapters.kinds import check_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.data import vocabularies
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.errors import ConfigError
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config

HYPERNETWORKS: Mapping[str, tuple[type, type]] = {
    "HyperT5": (HyperT5Config, HyperT5),
    "HART": (HARTConfig, HART),
}


@dataclasses.dataclass(frozen=True)
class HypermodelConfig:
    """What a hypermodel is made of.

    Attributes:
      base: shape of the frozen T5.
      spec: the adapters that are generated for it.
      hypernetwork: configuration of the hypernetwork.
      episodes: how support and inputs are laid out as tokens.
      vocabulary: of all tokens.
    """

    base: T5Config
    spec: AdapterSpec
    hypernetwork: HyperT5Config | HARTConfig
    episodes: EpisodeConfig
    vocabulary: vocabularies.Vocabulary

    def __post_init__(self) -> None:
        check_spec(self.spec, self.base)
        if self.base.scan_layers or self.hypernetwork.t5.scan_layers:
            raise ConfigError("HypermodelConfig: expected unrolled layers, got scan_layers=True")
        for name, t5 in (("base", self.base), ("hypernetwork.t5", self.hypernetwork.t5)):
            vocabularies.check_room(f"HypermodelConfig.{name}", t5.vocab_size, self.vocabulary)

    @property
    def hypernetwork_class(self) -> str:
        """Name of the hypernetwork's class in a model directory. Raises ConfigError where `HYPERNETWORKS` has none."""
        for name, (config, _) in HYPERNETWORKS.items():
            if type(self.hypernetwork) is config:
                return name
        raise ConfigError(
            f"HypermodelConfig.hypernetwork: expected the configuration of one of {', '.join(HYPERNETWORKS)}, got a "
            f"{type(self.hypernetwork).__name__}; a new one gets an entry in hyperflax.hypermodel.HYPERNETWORKS"
        )

    def build(self, *, scan_layers: bool = False) -> tuple[T5, HyperT5 | HART]:
        """Returns the two modules, with scanned layers on request."""
        network = HYPERNETWORKS[self.hypernetwork_class][1]
        trunk = dataclasses.replace(self.hypernetwork, t5=self.hypernetwork.t5.replace(scan_layers=scan_layers))
        return T5(self.base.replace(scan_layers=scan_layers)), network(trunk, self.spec)
