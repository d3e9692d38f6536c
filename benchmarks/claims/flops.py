"""Floating-point operations of a hypermodel's training step by its configuration, adapters' own products included.

`hyperflax.models.flops` says what is counted; here a teacher's forward pass and the products with the adapters come on
top, because experiments of different adapters are compared at equal operations.

>>> step_flops(t5_config, spec, HyperT5Config(t5=t5_config), EpisodeConfig())
"""

from __future__ import annotations

from hyperflax.adapters.kinds import groups
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.models import flops
from hyperflax.models.flops import Forward
from hyperflax.types import T5Config


def adapted(spec: AdapterSpec, t5: T5Config, rows: int, inputs: int, targets: int) -> Forward:
    """What adapters add to `base`; their values are activations of the hypernetwork, so all of it is mixing."""
    total = 0
    for path, leaves in groups(spec).items():
        stack, cross = path.split("/")[0], "/encoder_decoder_attention/" in path
        queries = rows * (inputs if stack == "encoder" else targets)
        if leaves[0].reader == "lora":
            # Keys and values of cross-attention are projections of the encoded inputs.
            of_source = cross and path.split("/")[-2] in ("key", "value")
            total += (
                2 * (rows * inputs if of_source else queries) * sum(leaf.shape[0] * leaf.shape[1] for leaf in leaves)
            )
        else:
            total += 4 * queries * leaves[0].slots * t5.joined_kv
    return Forward(0, total)


def step_flops(
    t5: T5Config,
    spec: AdapterSpec,
    network: HyperT5Config | HARTConfig,
    episodes: EpisodeConfig,
    *,
    distilled: bool = False,
) -> int:
    """Operations of one training step of a hypernetwork.

    Args:
      t5: shape of the frozen base.
      spec, network: of the adapters and of what writes them.
      episodes: of training: tasks, rows and lengths; each of its `supports` is read.
      distilled: a teacher reads `episodes.teacher_length` tokens before every scored example.
    """
    shape = (episodes.examples, episodes.inputs_length, episodes.targets_length)
    one = episodes.supports * network.flops(spec, episodes.rows, episodes.support_length).trained
    one += flops.t5(t5, *shape).frozen + adapted(spec, t5, *shape).frozen
    if distilled:
        one += flops.t5(t5, episodes.examples, episodes.teacher_length, episodes.targets_length).total
    return episodes.tasks_per_batch * one
