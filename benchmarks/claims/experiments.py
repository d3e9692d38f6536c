"""What an experiment is: data, all of it, so that its hash says whether a result on disk is still its result.

    base     a T5 that is frozen afterwards
    system   a hypernetwork for it, one shared adapter, or the T5 itself fine-tuned on all training tasks
    score    on held-out tasks, for every seed

>>> experiment = Experiment("hyper_t5", base, episodes, evaluation, adapter=LoRA(), hypernetwork=hypernetwork, ...)
>>> experiment.system, digest(experiment)
('hypernetwork', '3f0c...')

Experiments hold what they depend on (their base, the experiments whose models they tune), so a change anywhere reaches
every hash that it concerns. What is not in a hash: the code. `PROTOCOL` is raised when code that decides a figure
changes, and makes every result stale.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, ClassVar, Literal, Self

from benchmarks.claims.flops import step_flops
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError
from hyperflax.hypermodel import HypermodelConfig
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.types import T5Config

PROTOCOL = 1


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model, trained once and then frozen for all experiments and seeds that name it.

    Attributes:
      name: unique; the run's folder, and what `--base NAME=DIR` replaces by a model from elsewhere.
      family: of tasks, a name of `families.FAMILIES`.
      shape: of the T5.
      steps, batch_size, inputs_length, targets_length: of its pretraining.
      copying: leading steps of nothing but copying and following instructions, 0 for families without that stage.
    """

    name: str
    family: str
    shape: T5Config
    steps: int
    batch_size: int
    inputs_length: int
    targets_length: int
    copying: int = 0


@dataclasses.dataclass(frozen=True)
class PrunedBase(Base):
    """A base that starts from evenly spaced layers of a deeper one, the first and the last among them.

    It has less to learn than a T5 from scratch: to make do with fewer layers.

    Attributes:
      deeper: whose layers; its shape is this one's but for the number of layers.
    """

    deeper: Base = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        layers = {name: getattr(self.deeper.shape, name) for name in ("num_encoder_layers", "num_decoder_layers")}
        if self.shape.replace(**layers) != self.deeper.shape:
            raise ConfigError(
                f"base '{self.name}': expected the shape of '{self.deeper.name}' but for its layers, got {self.shape}"
            )
        for name, most in layers.items():
            if not 2 <= getattr(self.shape, name) <= most:
                raise ConfigError(
                    f"base '{self.name}': {name}: expected 2 to {most}, those of '{self.deeper.name}', got "
                    f"{getattr(self.shape, name)}"
                )

    def kept(self) -> dict[str, list[int]]:
        """Returns for both stacks which of the deeper one's layers are taken, `{"encoder": [0, 3], ...}`."""

        def spread(layers: int, deeper: int) -> list[int]:
            return [round(i * (deeper - 1) / (layers - 1)) for i in range(layers)]

        ours, theirs = self.shape, self.deeper.shape
        return {
            "encoder": spread(ours.num_encoder_layers, theirs.num_encoder_layers),
            "decoder": spread(ours.num_decoder_layers, theirs.num_decoder_layers),
        }


@dataclasses.dataclass(frozen=True)
class AnotherBase(Base):
    """A base trained once more, by the same recipe: what holds on one base may not on the next.

    Attributes:
      seed: of its fresh parameters; that of all other bases is 0.
    """

    seed: int = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Hyperpretraining:
    """A CACLM stage before the tasks; see `hyperflax.data.hyperpretraining.CACLM` for the lengths."""

    steps: int
    batch_size: int
    length: int
    shortest: int
    inputs_length: int
    targets_length: int
    learning_rate: float

    @property
    def support_length(self) -> int:
        """Of the row that holds the longest pieces A and D with their two ends."""
        return self.length - 2 * self.shortest + 2


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a trained system is scored.

    Attributes:
      tasks, examples: held-out tasks and scored examples of each.
      draws: supports of every task; all are scored on the same examples.
      conditions: of a report, on the first draw. `generated` is scored on every draw.
      shots: the generated adapters of so many support examples are scored as well, as `generated_K_shots`.
      refine_steps: of the refined conditions.
    """

    tasks: int
    examples: int
    draws: int
    conditions: tuple[str, ...]
    shots: tuple[int, ...] = ()
    refine_steps: int = 10


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A system that is trained on a family's training tasks and scored on its held-out tasks, for several seeds.

    A seed decides fresh parameters and the episodes that are drawn, in training and as supports in evaluation. The
    base, the held-out tasks and their scored examples are the same for all, so that experiments can be compared task by
    task and seed by seed.

    Attributes:
      name: unique within a table.
      base: the T5.
      episodes: of training; support, inputs and targets have the same lengths in evaluation.
      evaluation: see there.
      steps, learning_rate: of `optimizer`, with warm-up and cosine, the gradient clipped at 1.
      seeds: runs.
      adapter: what is generated or shared; None fine-tunes the T5.
      hypernetwork: None trains one shared adapter.
      hyperpretraining: a stage before, None for none.
      distillation, consistency: weights of the objective; see `hyperflax.train.HypernetworkOf`.
    """

    name: str
    base: Base
    episodes: EpisodeConfig
    evaluation: Evaluation
    steps: int
    learning_rate: float
    seeds: tuple[int, ...]
    adapter: KindConfig | None = None
    hypernetwork: HyperT5Config | HARTConfig | None = None
    hyperpretraining: Hyperpretraining | None = None
    distillation: float = 0.0
    consistency: float = 0.0

    optimizer: ClassVar[str] = "adamw"  # see `hyperflax.training.optimizers.make_optimizer`

    def __post_init__(self) -> None:
        if self.hypernetwork is not None and self.adapter is None:
            raise ConfigError(f"experiment '{self.name}': expected an adapter for the hypernetwork to write, got None")
        if self.hypernetwork is None and (self.hyperpretraining or self.distillation or self.consistency):
            raise ConfigError(f"experiment '{self.name}': expected a hypernetwork for its objective, got None")

    @property
    def system(self) -> Literal["hypernetwork", "shared", "mtf"]:
        """Which of the three it is."""
        if self.hypernetwork is not None:
            return "hypernetwork"
        return "mtf" if self.adapter is None else "shared"

    @property
    def spec(self) -> AdapterSpec:
        """Of the adapters that are written or shared. Raises ConfigError where the T5 itself is trained."""
        if self.adapter is None:
            raise ConfigError(f"experiment '{self.name}': expected an adapter, got None")
        return build_spec(self.adapter, self.base.shape)

    @property
    def flops_per_step(self) -> int | None:
        """Of a hypernetwork's training step, in closed form; None for the other systems."""
        if self.hypernetwork is None:
            return None
        distilled = self.distillation > 0
        return step_flops(self.base.shape, self.spec, self.hypernetwork, self.episodes, distilled=distilled)

    def hypermodel(self, vocabulary: Vocabulary) -> HypermodelConfig:
        """Returns the hypermodel's configuration. Raises ConfigError where the system is no hypernetwork."""
        if self.hypernetwork is None:
            raise ConfigError(f"experiment '{self.name}': expected a hypernetwork, got system '{self.system}'")
        return HypermodelConfig(
            base=self.base.shape,
            spec=self.spec,
            hypernetwork=self.hypernetwork,
            # Several supports and a teacher are of training; who loads the model adapts from one support.
            episodes=self.episodes.replace(supports=1, teacher="none"),
            vocabulary=vocabulary,
        )

    @classmethod
    def like(cls, experiment: Experiment, **more: Any) -> Self:
        """Returns an experiment of this class with all that another one has, and what this class has more."""
        return cls(**{field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)}, **more)

    def replace(self, **changes: Any) -> Experiment:
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class MuonExperiment(Experiment):
    """An experiment that is trained with Muon."""

    optimizer: ClassVar[str] = "muon"


@dataclasses.dataclass(frozen=True)
class TaskTraining:
    """A stage that trains an adapter for each of some training tasks, once for all seeds; see `train.TaskAdapters`.

    Attributes:
      tasks: how many, evenly spaced among the training tasks; all where there are no more.
      tasks_per_batch, steps, learning_rate: of the stage.
    """

    tasks: int
    tasks_per_batch: int
    steps: int
    learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionExperiment(Experiment):
    """An experiment in which the hypernetwork comes near to adapters of the tasks' own as well.

    Attributes:
      task_adapters: how those are trained.
      reconstruction: its weight; see `hyperflax.train.HypernetworkOf`.
    """

    task_adapters: TaskTraining
    reconstruction: float


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Further tuning of adapters on held-out tasks from three starts: generated, shared and random.

    The learning rate is chosen for each start and each number of training examples, on tasks that are not reported and
    with the systems of the first seed; all seeds take it.

    Attributes:
      name: unique within a table.
      hypermodel, shared: the experiments whose trained systems give the starts; one base and one adapter.
      tasks: reported. rate_tasks: others, for the choice of the learning rate.
      examples: scored examples of a task.
      train_examples: how many examples of a task are tuned on. The first `shots` of them are what the generated
        adapter was made from, so that the number of shots itself is refining on the support.
      rates: learning rates to choose from.
      marks: steps after which loss and score are taken, ascending.
      seeds: of the systems, of the examples and of the random start.
    """

    name: str
    hypermodel: Experiment
    shared: Experiment
    tasks: int
    rate_tasks: int
    examples: int
    train_examples: tuple[int, ...]
    rates: tuple[float, ...]
    marks: tuple[int, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        ours, theirs = self.hypermodel, self.shared
        if (ours.system, theirs.system) != ("hypernetwork", "shared"):
            raise ConfigError(
                f"tuning '{self.name}': expected a hypernetwork and a shared adapter, got {ours.system} and "
                f"{theirs.system}"
            )
        if (ours.base, ours.adapter) != (theirs.base, theirs.adapter):
            raise ConfigError(f"tuning '{self.name}': expected one base and one adapter in both of its experiments")

    @property
    def base(self) -> Base:
        return self.hypermodel.base


def described(value: Any) -> Any:
    """Returns a configuration as json, the class's name in every dataclass: two kinds with equal fields differ."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    return value


def digest(experiment: Experiment | Tuning) -> str:
    """Returns the hash of an experiment's configuration and of the protocol, 16 hexadecimal digits."""
    content = json.dumps([PROTOCOL, described(experiment)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
