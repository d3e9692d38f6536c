"""One of the processes of a job, which does what jobs do and says what came of it, as a line of json.

    python -m tests.launch.job_of_four ADDRESS FOLDER [PORT COUNT INDEX]

Trains three steps in ADDRESS/run, goes on to the sixth, and evaluates into ADDRESS/scores; trains a hypernetwork in
ADDRESS/hypernetwork for the T5X checkpoint at ADDRESS/t5. One of several also asks for FOLDER, in which somebody else
is at work, and has read another base model than the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks import killed_run
from hyperflax import trees
from hyperflax.adapters import LoRA, build_spec
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.episodes import Episodes
from hyperflax.data.examples import InMemorySource
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import BusyError, CheckpointError
from hyperflax.evaluation.runner import EvaluationTask, evaluate_conditions
from hyperflax.hypermodel import HypermodelConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.locks import alone_in
from hyperflax.processes import Processes
from hyperflax.train import HypernetworkOf, PlainT5, train
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.optimizers import make_optimizer
from hyperflax.training.partitioning import Partitioner, make_mesh
from hyperflax.training.run_log import read_rows
from hyperflax.types import T5Config

BASE = T5Config(
    vocab_size=384, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
TASKS = [EvaluationTask(f"task{number}", (f"a{number}", "b"), ((f"A{number}",), ("b",))) for number in range(7)]


def refused_folder(folder: str) -> str:
    try:
        with alone_in(folder):
            return "admitted"
    except BusyError as error:
        return str(error)


def refused_base(partitioner: Partitioner, processes: Processes) -> str:
    """What is said when the third process has read another base model; the same one is placed without a word."""
    for other in (0, 1):
        values = np.arange(64, dtype=np.float32).reshape(8, 8) + other * (processes.index == 2)
        frozen = {"encoder": {"layers_0": {"mlp": {"wi_0": {"kernel": values}}}}}
        try:
            placed = partitioner.place_frozen(frozen)["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
            assert placed.shape == (8, 8)
            for shard in placed.addressable_shards:
                assert shard.data.size == 32, shard  # fsdp is 2
                np.testing.assert_array_equal(shard.data, values[shard.index])
        except CheckpointError as error:
            return str(error)
    return "placed"


def neighbour_tables(count: int) -> dict[str, float]:
    """By path, the sum of what heads that look next door have in each table more than fresh ones; heads lie apart."""
    mesh, batch = make_mesh(data=-1, model=2 if count > 1 else 1), killed_run.Batches().batch(0)
    plain, sums = PlainT5(BASE, Bytes()), []
    for model in (plain, dataclasses.replace(plain, neighbour_heads=3.0)):
        partitioner = Partitioner(mesh)
        start = functools.partial(model.initial_params, partitioner=partitioner)
        state = partitioner.create_state(
            model.objective, make_optimizer("adamw", 1e-2), jax.random.key(0), batch, start
        )
        tables = {path: leaf for path, leaf in trees.flatten(state.params).items() if path.endswith("rel_embedding")}
        assert all(leaf.is_fully_addressable == (count == 1) for leaf in tables.values())
        sums.append({path: float(leaf.sum()) for path, leaf in tables.items()})
    return {path: more - sums[0][path] for path, more in sums[1].items()}


def capitals(batch: list[EvaluationTask]) -> list[list[str]]:
    return [[text.upper() for text in task.inputs] for task in batch]


def train_hypernetwork(address: str, partitioner: Partitioner) -> None:
    """The base and the hypernetwork's own T5 come from T5X's checkpoint, each process reading its parts."""
    episodes = EpisodeConfig(
        tasks_per_batch=4, shots=1, examples=1, support_length=12, inputs_length=6, targets_length=6
    )
    config = HypermodelConfig(
        BASE, build_spec(LoRA(rank=2), BASE), HyperT5Config(BASE, HeadsConfig(hidden=8)), episodes, Bytes()
    )
    source = InMemorySource.from_strings(
        {name: [(f"{name}{i}", f"{i}{name}") for i in range(4)] for name in "abcd"}, Bytes()
    )
    train(
        model=HypernetworkOf(config, f"{address}/t5"),
        batches=Episodes(source, episodes),
        optimizer=make_optimizer("adamw", 1e-2),
        total_steps=2,
        model_dir=f"{address}/hypernetwork",
        partitioner=partitioner,
        progress=False,
    )


def main(address: str, folder: str, port: str = "", count: str = "1", index: str = "0") -> None:
    if port:
        jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    processes, said = Processes.running(), {}
    partitioner = Partitioner(make_mesh(data=-1, fsdp=2 if processes.count > 1 else 1))
    if processes.count > 1:
        said = {"folder": refused_folder(folder), "base": refused_base(partitioner, processes)}
    said["tables"] = neighbour_tables(processes.count)
    for steps in (3, 6):
        options = {"log_period": 1, "save_period": 2, "eval_period": 3, "partitioner": partitioner}
        killed_run.run(f"{address}/run", total_steps=steps, schedule_steps=6, **options)
    train_hypernetwork(address, partitioner)
    table = evaluate_conditions(
        TASKS,
        {"bare": capitals},
        "exact_match",
        batch_size=1,
        out=f"{address}/scores",
        config={"answers": "capitals"},
        progress=False,
        processes=processes,
    )
    if processes.first:
        with Checkpoints(f"{address}/run/checkpoints", read_only=True) as checkpoints:
            arrays = trees.flatten(checkpoints.arrays())
        np.savez(pathlib.Path(folder) / f"of-{processes.count}.npz", **arrays)
        said["rows"] = read_rows(f"{address}/run/metrics.jsonl")
    said["scores"] = table.scores
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
