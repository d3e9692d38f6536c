"""Runs `python -m t5x.train` on the shipped gin file with a tiny model and tells what it did; or writes that down.

HYPERFLAX_T5X=/path/to/t5x python -m tests.integrations.run_t5x     # writes goldens/t5x_train.npz

batch/STEP/FEATURE     what the feature converter made, in T5X's order
start/..., end/...     T5X's parameters before the first step and after the last: base/..., hypernetwork/...
checkpoint/...         the T5 checkpoint that the run started from
loss, accuracy         [step] means over target tokens, as T5X logged them; eval_loss [1] at the end
"""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.checkpoints.orbax_form import read_orbax
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.models.t5 import T5
from tests.integrations.t5x_model import BASE, CONFIG, GOLDENS, SEED, STEPS, TASKS
from tests.integrations.t5x_task import NAME, VOCABULARY, register

HERE = pathlib.Path(__file__).resolve().parent


def run(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Trains in a fresh folder and returns the arrays of the module's table."""
    params, checkpoint = t5(folder)
    train(folder / "run", checkpoint)
    found = {f"checkpoint/{path}": np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    for name, step in (("start", 0), ("end", STEPS)):
        tree = trees.flatten(read_orbax(folder / "run", step=step))
        found |= {f"{name}/{path}": leaf for path, leaf in tree.items()}
    for step, batch in enumerate(batches()):
        found |= {f"batch/{step}/{name}": array for name, array in batch.items()}
    logged = scalars(folder / "run" / "train")
    found |= {name: np.asarray(logged[name], np.float32) for name in ("loss", "accuracy")}
    found["eval_loss"] = np.asarray(scalars(folder / "run" / "training_eval" / NAME)["loss"], np.float32)
    return found


def t5(folder: pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """Writes the T5 that runs start from; returns its parameters and the checkpoint."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.device_get(T5(BASE).init(jax.random.key(3), tokens, tokens)["params"])
    return params, write_t5x_checkpoint(folder / "t5", params, step=1000)


def train(
    model_dir: pathlib.Path,
    checkpoint: pathlib.Path,
    *settings: str,
    killed_at: pathlib.Path | None = None,
    devices: int = 1,
) -> None:
    """Runs T5X as its users do.

    Args:
      model_dir: where T5X writes.
      checkpoint: of the T5 to start from.
      settings: of gin, besides, `TRAIN_STEPS=12`.
      killed_at: the run is killed as soon as this is there.
      devices: number of fake ones.

    Raises:
      RuntimeError: it failed, or ended before it could be killed; holds the end of what it printed.
    """
    copy = os.environ["HYPERFLAX_T5X"]
    places = [copy, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    command = [sys.executable, "-m", "t5x.train", f"--gin_file={HERE / 't5x_letters.gin'}"]
    command += [f"--gin.MODEL_DIR='{model_dir}'", f"--gin.INITIAL_CHECKPOINT_PATH='{checkpoint}'"]
    command += [f"--gin.{setting}" for setting in settings]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    model_dir.parent.mkdir(parents=True, exist_ok=True)
    with (model_dir.parent / "t5x.log").open("w+b") as log:
        process = subprocess.Popen(command, cwd=HERE.parent.parent, env=environment, stdout=log, stderr=log)
        while killed_at is not None and process.poll() is None:
            if killed_at.exists():
                process.kill()
            time.sleep(0.01)
        if process.wait() != (0 if killed_at is None else -signal.SIGKILL):
            log.seek(0)
            told = log.read()[-6000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{told}")


def batches(count: int = STEPS) -> list[dict[str, np.ndarray]]:
    """The first batches that T5X trained on, from its own function."""
    from t5x import utils

    from hyperflax.integrations.t5x_episodes import EpisodeFeatureConverter

    register()
    lengths = {"inputs": 32, "targets": 32}
    settings = utils.DatasetConfig(NAME, lengths, split="train", batch_size=TASKS, shuffle=True, seed=SEED)
    converter = functools.partial(EpisodeFeatureConverter, config=CONFIG.episodes, vocabulary=VOCABULARY)
    return list(utils.get_dataset(settings, 0, 1, converter).take(count).as_numpy_iterator())


def scalars(folder: pathlib.Path) -> dict[str, list[float]]:
    """Every scalar in a folder's TensorBoard events, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    found = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in events.Tags()["tensors"]:
        values = [tensor_util.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]
        if all(value.dtype.kind == "f" and value.ndim == 0 for value in values):
            found[tag] = [float(value) for value in values]
    return found


if __name__ == "__main__":
    sys.path.append(os.environ["HYPERFLAX_T5X"])
    with tempfile.TemporaryDirectory() as folder:
        arrays = run(pathlib.Path(folder))
    GOLDENS.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS, **arrays)
    print({name: array.tolist() for name, array in arrays.items() if "/" not in name})
