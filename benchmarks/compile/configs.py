"""Which runs are compiled for which slices, and the hash that tells a stale result.

>>> CONFIGS["xl_hyper_t5_lora_v5e"].command()
['compile', '--gin_file=hyperflax_gin_configs/runs/natural_instructions_hyper_t5_lora.gin', ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re

import gin

from hyperflax.cli import gin_jobs
from hyperflax.cli.bindings import split_bindings
from hyperflax.cli.compile import STAND_INS
from hyperflax.cli.main import build_parser

PACKAGE = "hyperflax_gin_configs"
_DATA = re.compile(r"(\w+/)*registry\.load_source\.|MIXTURE_OR_TASK_")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run on a slice.

    Attributes:
      files: gin files below the package of those that are shipped; later ones win.
      topology: the slice.
      programs: see `hyperflax compile --program`.
    """

    files: tuple[str, ...]
    topology: str
    programs: tuple[str, ...] = ("train",)

    def command(self) -> list[str]:
        """Returns the arguments of `hyperflax` that compile it."""
        files = [f"--gin_file={PACKAGE}/{file}" for file in self.files]
        return ["compile", *files, f"--topology={self.topology}", *(f"--program={name}" for name in self.programs)]

    def arguments(self) -> argparse.Namespace:
        rest, bindings = split_bindings(self.command())
        return build_parser().parse_args(rest, argparse.Namespace(gin_bindings=bindings))

    def digest(self) -> str:
        """Returns the hash of everything that the gin files say, of the slice and of the programs.

        All but where the data comes from: no data is read, only its shapes are compiled for.
        """
        gin_jobs.parse(gin_jobs.TRAINING, self.arguments(), STAND_INS)
        told = [line for line in gin.config_str(max_line_length=120).splitlines() if not _DATA.match(line)]
        text = "\n".join([*told, self.topology, *self.programs])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


RUNS = {
    "hyper_t5_lora": ("runs/natural_instructions_hyper_t5_lora.gin",),
    "hyper_t5_prefix": ("runs/natural_instructions_hyper_t5_prefix.gin",),
    "hart_lora": ("runs/natural_instructions_hart.gin",),
    "hart_prefix": ("runs/natural_instructions_hart.gin", "adapters/prefix.gin"),
}
SLICES = {
    "xl": (("v5e", "v5e:16x16", "v5e_256"), ("v5p", "v5p:4x4x4", "v5p_64")),
    "xxl": (("v5p", "v5p:8x8x8", "v5p_512"),),
}
CONFIGS = {
    f"{size}_{name}_{chip}": Config((*files, f"models/t5_1_1_{size}.gin", f"meshes/{mesh}.gin"), topology)
    for size, slices in SLICES.items()
    for chip, topology, mesh in slices
    for name, files in RUNS.items()
}
CONFIGS["xl_hyper_t5_lora_v5e_inference"] = dataclasses.replace(
    CONFIGS["xl_hyper_t5_lora_v5e"], programs=("generate", "decode")
)
