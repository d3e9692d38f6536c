"""Families of tasks at two scales: the sizes of all experiments, and nothing that a claim is about.

`cpu` is what two cores finish in days, claim by claim; `gpu` is for one accelerator. Lengths, rates and batches are
those of the run files under `gin_configs/runs`, shortened for `cpu`.
"""

from __future__ import annotations

import dataclasses

from benchmarks.claims.experiments import AnotherBase, Base, Evaluation, Hyperpretraining, PrunedBase, TaskTraining
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.types import T5Config

FULL = ("bare", "instruction", "in_context", "generated", "shuffled_support", "refined", "shuffled_support_refined")
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
QUERY_VALUE = ("*/query", "*/value")
SITES = (
    ("query and value", QUERY_VALUE),
    ("all", ("*",)),
    ("all of the encoder", ("encoder/*",)),
    ("all of the decoder", ("decoder/*",)),
)

OWN_ADAPTERS = TaskTraining(tasks=1024, tasks_per_batch=64, steps=480, learning_rate=5e-3)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A family at a scale; what has a default is the same for both families on a CPU.

    Attributes:
      bases: of different depths; the first is that of every claim but the one about depth.
      another: of the shape of the first, trained once more: claim 1 is looked at on it again, and what claim 5 says of
        sizes and sites is found on it. None for a family that does with its first.
      episodes, evaluation, steps, learning_rate: of the reference recipe.
      mtf_learning_rate: of fine-tuning the T5 itself.
      lora, prefix, heads: of the reference hypernetworks.
      window: the hyperpretraining stage; its steps are overridden by each of `hyperpretraining`.
      hyperpretraining: three lengths in steps, ascending: too short, right, too long.
      consistency: weights, ascending; the first is the one that decides.
      distillation: its weight. teacher_length: tokens that the teacher reads.
      reconstruction: its weight. task_adapters: how the adapters that it wants are trained.
      shots: of the curve over shots, ascending.
      ranks, prefix_lengths: ascending.
      scored: scored examples per support, for equally many examples in a step.
      sites: LoRA's, by name.
      muon_seconds: of a step with Muon, in those of one with AdamW; measured in turns at scale `cpu` on one core.
      tuning_*: see `Tuning`.
      seeds: of every experiment.
    """

    name: str
    bases: tuple[Base, ...]
    episodes: EpisodeConfig
    evaluation: Evaluation
    learning_rate: float
    lora: LoRA
    prefix: Prefix
    heads: HeadsConfig
    window: Hyperpretraining
    teacher_length: int
    tuning_tasks: int
    tuning_rate_tasks: int
    tuning_examples: int
    tuning_train_examples: tuple[int, ...]
    another: AnotherBase | None = None
    steps: int = 600
    mtf_learning_rate: float = 3e-4
    hyperpretraining: tuple[int, int, int] = (150, 600, 2400)
    consistency: tuple[float, ...] = (1.0, 10.0)
    distillation: float = 0.5
    reconstruction: float = 0.2
    task_adapters: TaskTraining = OWN_ADAPTERS
    shots: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    ranks: tuple[int, ...] = (2, 8, 32)
    prefix_lengths: tuple[int, ...] = (4, 16, 32)
    scored: tuple[int, ...] = (1, 4, 16)
    sites: tuple[tuple[str, tuple[str, ...]], ...] = SITES
    muon_seconds: float = 1.27
    tuning_rates: tuple[float, ...] = RATES
    tuning_marks: tuple[int, ...] = (0, 1, 3, 10, 30, 100)
    seeds: tuple[int, ...] = (0, 1, 2)


def _deep(shape: T5Config, layers: int) -> T5Config:
    return shape.replace(num_encoder_layers=layers, num_decoder_layers=layers)


# The shape of models/strings.gin, and the recipe of runs/strings_{base,hypermodel}.gin.
_STRINGS = T5Config(
    vocab_size=384, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_encoder_layers=4, num_decoder_layers=4
)
_STRINGS_EPISODES = EpisodeConfig(
    tasks_per_batch=16,
    shots=4,
    examples=4,
    support_length=44,
    inputs_length=26,
    targets_length=24,
    support_layout="separate",
    too_long="skip",
    too_few="skip",
)


def _strings_base(family: str, layers: int, steps: int, copying: int, batch_size: int) -> Base:
    return Base(f"strings_{layers}", family, _deep(_STRINGS, layers), steps, batch_size, 192, 96, copying)


def _pruned(base: Base, name: str, layers: int, steps: int) -> Base:
    lengths = (base.batch_size, base.inputs_length, base.targets_length)
    return PrunedBase(name, base.family, _deep(base.shape, layers), steps, *lengths, deeper=base)


_STRINGS_CPU_BASE = _strings_base("strings_demo", 4, 11000, 3400, 20)

STRINGS_CPU = Setting(
    name="cpu",
    bases=(_STRINGS_CPU_BASE, _pruned(_STRINGS_CPU_BASE, "strings_2", 2, 1500)),
    episodes=_STRINGS_EPISODES,
    evaluation=Evaluation(tasks=120, examples=8, draws=3, conditions=FULL),
    learning_rate=1e-3,
    lora=LoRA(rank=8, alpha=8.0, sites=("*",)),
    prefix=Prefix(length=16),
    heads=HeadsConfig(hidden=128),
    window=Hyperpretraining(600, 16, 96, 12, 48, 32, 1e-3),
    teacher_length=64,
    tuning_tasks=32,
    tuning_rate_tasks=8,
    tuning_examples=8,
    tuning_train_examples=(4, 16),
)

STRINGS_GPU = dataclasses.replace(
    STRINGS_CPU,
    name="gpu",
    bases=tuple(_strings_base("strings", layers, 20000, 3400, 64) for layers in (4, 2, 8)),
    episodes=_STRINGS_EPISODES.replace(tasks_per_batch=64, support_length=64, inputs_length=36, targets_length=32),
    evaluation=Evaluation(tasks=600, examples=12, draws=4, conditions=FULL),
    steps=8000,
    window=Hyperpretraining(4000, 128, 96, 12, 48, 32, 1e-3),
    hyperpretraining=(1000, 4000, 16000),
    consistency=(1.0, 10.0, 20.0),
    tuning_tasks=200,
    tuning_rate_tasks=64,
)

# Small enough that two cores pretrain it in an hour, and that one of them takes twenty minutes for a run: 4 M
# parameters, 10 M with the embedding, half of models/t5_mini.gin.
_TINY = T5Config(
    vocab_size=32128,
    emb_dim=192,
    num_heads=6,
    head_dim=32,
    mlp_dim=512,
    num_encoder_layers=4,
    num_decoder_layers=4,
    logits_via_embedding=True,
)
# The recipe of runs/natural_instructions_{base,hypermodel}.gin.
_NATURAL_EPISODES = EpisodeConfig(
    tasks_per_batch=8,
    shots=2,
    examples=4,
    definition="support",
    support_length=128,
    inputs_length=128,
    targets_length=32,
    support_layout="separate",
    task_cap=100,
    too_long="truncate",
    too_few="skip",
)


def _natural_base(shape: T5Config, layers: int, steps: int, batch_size: int) -> Base:
    name = f"natural_instructions_{shape.emb_dim}_{layers}"
    return Base(name, "natural_instructions", _deep(shape, layers), steps, batch_size, 256, 64)


_NATURAL_CPU_BASE = _natural_base(_TINY, 4, 2400, 16)
_NATURAL_CPU_ANOTHER = AnotherBase(**vars(_NATURAL_CPU_BASE) | {"name": "natural_instructions_192_4_another"}, seed=1)

NATURAL_CPU = Setting(
    name="cpu",
    bases=(_NATURAL_CPU_BASE, _pruned(_NATURAL_CPU_BASE, "natural_instructions_192_2", 2, 800)),
    another=_NATURAL_CPU_ANOTHER,
    episodes=_NATURAL_EPISODES,
    evaluation=Evaluation(tasks=119, examples=16, draws=2, conditions=FULL),
    learning_rate=5e-4,
    lora=LoRA(rank=8, alpha=8.0, sites=("*",)),
    prefix=Prefix(length=16),
    heads=HeadsConfig(hidden=128),
    window=Hyperpretraining(400, 8, 256, 16, 128, 64, 5e-4),
    teacher_length=256,
    tuning_tasks=32,
    tuning_rate_tasks=6,
    tuning_examples=8,
    tuning_train_examples=(2, 8),
    steps=400,
    hyperpretraining=(100, 400, 1600),
)

# 45 M parameters with the embedding, 29 M without.
_SMALL = _TINY.replace(emb_dim=512, num_heads=8, head_dim=64, mlp_dim=1024)

NATURAL_GPU = dataclasses.replace(
    NATURAL_CPU,
    name="gpu",
    another=None,
    bases=tuple(_natural_base(_SMALL, layers, 40000, 128) for layers in (6, 2)),
    episodes=_NATURAL_EPISODES.replace(tasks_per_batch=32, support_length=256, inputs_length=256, targets_length=64),
    evaluation=Evaluation(tasks=119, examples=60, draws=3, conditions=FULL),
    learning_rate=3e-4,
    steps=4000,
    heads=HeadsConfig(hidden=256),
    teacher_length=512,
    window=Hyperpretraining(4000, 64, 512, 16, 256, 128, 3e-4),
    tuning_tasks=60,
    tuning_rate_tasks=20,
    tuning_examples=16,
    tuning_train_examples=(2, 16),
    hyperpretraining=(1000, 4000, 16000),
    consistency=(1.0, 10.0, 20.0),
)

SETTINGS: dict[tuple[str, str], Setting] = {
    ("strings_demo", "cpu"): STRINGS_CPU,
    ("strings", "gpu"): STRINGS_GPU,
    ("natural_instructions", "cpu"): NATURAL_CPU,
    ("natural_instructions", "gpu"): NATURAL_GPU,
}
