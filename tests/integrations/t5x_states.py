"""T5X's own training states, with the optimizers that its users have, in both layouts."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

STEP = 12
SIZES = {
    "vocab_size": 40,
    "emb_dim": 8,
    "num_heads": 2,
    "head_dim": 4,
    "mlp_dim": 12,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "mlp_activations": ("gelu", "linear"),
}
# The layout, and the optimizer's name in `optimizer`.
STATES = [
    ("minimal", "adafactor"),
    ("minimal", "adafactor_with_momentum"),
    ("minimal", "adamw"),
    ("scalable", "adafactor"),
    ("scalable", "adamw"),
]


def optimizer(name: str) -> Any:
    """One of T5X's optimizers; factors of matrices as small as these are kept, too."""
    from t5x import adafactor, optimizers

    if name == "adamw":
        return optimizers.adamw(learning_rate=1e-3)
    return adafactor.Adafactor(
        learning_rate=1e-3,
        beta1=0.9 if name == "adafactor_with_momentum" else None,
        min_dim_size_to_factor=8,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
    )


def training_state(layout: str, name: str) -> tuple[Any, Any]:
    """Returns T5X's training state, a different random number in every place, and its partitioner."""
    import jax
    from t5x import models, partitioning, utils

    if layout == "scalable":
        from t5x.examples.scalable_t5 import network
    else:
        from t5x.examples.t5 import network
    definition = optimizer(name)
    model = models.EncoderDecoderModel(network.Transformer(network.T5Config(**SIZES)), None, None, definition)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    tokens = {"encoder_input_tokens": (1, 4), "decoder_input_tokens": (1, 4)}
    initializer = utils.TrainStateInitializer(definition, model.get_initial_variables, tokens, partitioner)
    state = initializer.from_scratch(jax.random.key(0))
    rng = np.random.default_rng(5)

    def drawn(leaf: Any) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.integer):
            return np.asarray(STEP, leaf.dtype)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    return state.restore_state(jax.tree.map(drawn, state.state_dict())), partitioner


def leaves(state: Any) -> dict[str, np.ndarray]:
    """Every array of a training state by path."""
    found = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, f"{path}/{key}" if path else key)
        elif node is not None:
            found[path] = np.asarray(node)

    walk(state.state_dict(), "")
    return found


def checkpointer(form: str) -> Callable[..., Any]:
    """T5X's own class for the legacy form, or for Orbax's."""
    from t5x import checkpoints

    return checkpoints.Checkpointer if form == "legacy" else checkpoints.OrbaxCheckpointManagerInterface


def save(form: str, directory: pathlib.Path) -> Callable[[Any, Any], None]:
    """Has T5X write a state to `directory/checkpoint_12`."""

    def write(state: Any, partitioner: Any) -> None:
        directory.mkdir()
        arguments = (state, partitioner, str(directory)) if form == "legacy" else (str(directory), state, partitioner)
        manager = checkpointer(form)(*arguments)
        manager.save(state)
        if form == "orbax":
            manager.wait_until_finished()

    return write
