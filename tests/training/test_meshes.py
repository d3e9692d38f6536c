"""Whatever the mesh, a hypernetwork learns, scores, generates and decodes what it does on one device."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

# Every way to lay eight devices out over data, fsdp and model.
SHAPES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]


def told_by(*arguments: str) -> dict:
    """Eight CPU devices need a process of their own."""
    command = [sys.executable, "-m", "tests.training.meshes", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("network", "kind", "shapes"),
    # A mesh takes half a minute: on each, one kind with one network and the other kind with the other.
    [
        ("hyper_t5", "lora", SHAPES[0::2]),
        ("hyper_t5", "prefix", SHAPES[1::2]),
        ("hart", "lora", SHAPES[1::2]),
        ("hart", "prefix", SHAPES[0::2]),
    ],
)
def test_every_mesh_gives_the_numbers_of_one_device(network: str, kind: str, shapes: list[tuple[int, ...]]) -> None:
    report = told_by(network, kind, *(",".join(map(str, sizes)) for sizes in shapes))
    assert len(report) == len(shapes) == 5
    for sizes, found in report.items():
        np.testing.assert_allclose(*found["loss"], rtol=1e-5, err_msg=sizes)
        np.testing.assert_allclose(*found["evaluated"], rtol=1e-5, err_msg=sizes)
        assert found["gradient"] < 1e-5, sizes  # of the largest
        assert found["adapters"] < 1e-5, sizes
        assert found["tokens"], sizes


def test_a_chip_receives_no_more_where_devices_and_tasks_grow_together() -> None:
    report = told_by("weak")
    # Copies of everything: the gradient is summed, and nothing else is sent. A ring of n sends 2 (n - 1) / n of it.
    whole = {n: received * n / (2 * (n - 1)) for n in (2, 4, 8) for _, received in report[f"data {n}"].values()}
    assert all(set(report[f"data {n}"]) == {"all-reduce"} for n in (2, 4, 8))
    assert len({report[f"data {n}"]["all-reduce"][0] for n in (2, 4, 8)}) == 1
    assert whole[2] == whole[4] == whole[8]
    # Pieces: kernels are gathered and gradients summed as often on eight devices as on four, and as much of them.
    four, eight = report["fsdp 4"], report["fsdp 8"]
    assert set(four) == set(eight) == {"all-gather", "all-reduce", "all-to-all"}
    for kind in four:
        assert four[kind][0] == eight[kind][0], kind
        if kind != "all-to-all":
            assert eight[kind][1] * 8 / 7 == pytest.approx(four[kind][1] * 4 / 3, rel=0.01), kind
    assert eight["all-to-all"][1] < 0.05 * eight["all-gather"][1]
