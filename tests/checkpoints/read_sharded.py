"""Reads checkpoints onto a mesh of eight CPU devices: run by test_onto_mesh.py in a process of its own.

python read_sharded.py CHECKPOINT...        fails where a value, a place or the amount read is wrong
"""

from __future__ import annotations

import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from hyperflax import trees  # noqa: E402
from hyperflax.checkpoints import onto_mesh  # noqa: E402
from hyperflax.checkpoints.forms import read_model  # noqa: E402
from hyperflax.models.stacking import stack_layers  # noqa: E402
from hyperflax.training.base_model import digest  # noqa: E402
from hyperflax.training.partitioning import Partitioner, make_mesh  # noqa: E402


def kernels(name: str) -> str | None:
    return "bfloat16" if name.endswith("kernel") else None


def main(paths: list[str]) -> None:
    partitioner = Partitioner(make_mesh(data=1, fsdp=4, model=2))
    read, size_of = [], onto_mesh._size

    def counted(part):
        read.append(size_of(part))
        return size_of(part)

    onto_mesh._size = counted
    for path in paths:
        model = read_model(path)
        read.clear()
        for scan_layers, dtype in ((False, None), (True, None), (False, kernels)):
            config = model.config.replace(scan_layers=scan_layers)
            whole = trees.flatten(stack_layers(model.params, config) if scan_layers else model.params)
            placed = trees.flatten(onto_mesh.read_onto_mesh(path, config, partitioner.t5_sharding, dtype=dtype))
            assert placed.keys() == whole.keys()
            for name, array in placed.items():
                wanted = (dtype and dtype(name)) or whole[name].dtype
                assert array.dtype == wanted, name
                expected = whole[name].astype(wanted)
                assert array.sharding == partitioner.t5_sharding(name, array.shape), name
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index], err_msg=name)
            assert digest(trees.unflatten(placed)) == digest(model.params)
            embedding = placed["token_embedder/embedding"]
            assert embedding.addressable_shards[0].data.size * 8 == embedding.size
        # Every value once each time, though norms lie on several devices; leaves inside the msgpack file apart.
        needed = 3 * sum(array.size for array in whole.values())
        assert 0 < sum(read) < needed if "inline" in path else sum(read) == needed, (path, sum(read), needed)
    print("read", len(paths))


if __name__ == "__main__":
    main(sys.argv[1:])
