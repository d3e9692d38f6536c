"""The analysis of compiled programs against counts by hand, closed forms, and XLA's own count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from hyperflax.compile.chips import CHIPS, chip_of
from hyperflax.compile.collectives import Collective, first_group, received_bytes
from hyperflax.compile.hlo import Instruction, Shape, parse, shapes
from hyperflax.compile.products import product_flops
from hyperflax.compile.roofline import bandwidth, estimate
from hyperflax.compile.topology import parse_topology
from hyperflax.compile.walk import Work, walk
from hyperflax.errors import ConfigError, HyperflaxError
from hyperflax.training.clock import PEAK_FLOPS
from tests.compile.programs import PRODUCT, SCANNED

TURNS = 4  # from 1 to below 5


def test_a_program_is_read() -> None:
    module = parse(SCANNED)
    assert [one.opcode for one in module.entry][-1] == "get-tuple-element"
    assert module.computations["fused_slice"].root.opcode == "bitcast"
    (slice_,) = (one for one in module.computations["fused_slice"] if one.opcode == "dynamic-slice")
    assert slice_.operands == ("p0", "p1", "zero", "zero")
    assert module.computations["body"]["mine"].called == ("fused_slice",)
    assert module.computations["body"]["start"].shapes == (Shape("bf16", (2, 16)), Shape("bf16", (8, 16)))
    with pytest.raises(HyperflaxError, match="with an ENTRY"):
        parse("no program")
    with pytest.raises(HyperflaxError, match="HLO line 2: cannot read"):
        parse("ENTRY %main () -> f32[] {\n  %x = (f32[2] add(\n}\n")


def test_shapes_have_bytes_and_a_memory_space() -> None:
    found = shapes("(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[4]{0}, pred[], s32[5]{0:S(4)})")
    assert [shape.nbytes for shape in found] == [24, 8, 1, 20]
    assert [shape.space for shape in found] == [1, 0, 0, 4]
    assert shapes("f8e4m3fn[10]{0}")[0].nbytes == 10


def test_loops_count_by_their_turns() -> None:
    work = walk(parse(SCANNED), devices=4)
    assert work.loops == {"loop": TURNS}
    assert work.flops == TURNS * PRODUCT
    assert [(one.kind, one.group, one.times) for one in work.collectives] == [
        ("all-gather", (0, 1, 2, 3), TURNS),
        ("all-gather", (0, 1), TURNS),
    ]
    # Three quarters of the whole kernel come from others; of two chips, half.
    assert [one.received for one in work.collectives] == [8 * 16 * 2 * 3 // 4, 8 * 16 * 2 // 2]


def test_what_runs_between_start_and_end_hides_a_collective() -> None:
    first, second = walk(parse(SCANNED), devices=4).collectives
    assert (first.overlapped_flops, second.overlapped_flops) == (0, PRODUCT)


def test_main_memory_counts_slices_and_not_what_is_on_the_chip() -> None:
    slice_, x, y, whole = 2 * 16 * 2, 32 * 8 * 2, 32 * 16 * 2, 8 * 16 * 2
    turn = (
        2 * slice_ + 4  # a turn's kernel is read and written, not the stack of all; and its number
        + slice_  # gathered into on-chip memory
        + slice_ + whole  # the other gather
        + x + y  # the product; its kernel is on the chip
        + 3 * 4  # the counter
    )  # fmt: skip
    assert walk(parse(SCANNED), devices=4).nbytes == TURNS * turn + 2 * 4


def conv(text: str, out: tuple[int, ...]) -> Instruction:
    return Instruction("c", "convolution", (Shape("bf16", out),), ("a", "b"), "", text)


@pytest.mark.parametrize(
    ("text", "left", "right", "out", "products"),
    [
        ("dim_labels=bf_io->bf", (32, 8), (8, 16), (32, 16), 32 * 8 * 16),
        ("dim_labels=fb_io->bf", (8, 32), (8, 16), (32, 16), 32 * 8 * 16),
        ("dim_labels=bf_oi->bf", (32, 8), (16, 8), (32, 16), 32 * 8 * 16),
        # Two axes contracted: one is a window that meets the input in a single place.
        ("window={size=2}, dim_labels=0fb_0io->bf0", (2, 128, 8), (2, 128, 512), (8, 512, 1), 2 * 128 * 8 * 512),
        # A batch of two and one of five products: the gaps leave one valid place for each output.
        ("window={size=2 lhs_dilate=2}, dim_labels=0fb_0io->0bf", (2, 3, 8), (2, 3, 16), (2, 8, 16), 2 * 3 * 8 * 16),
        (
            "window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
            (5, 6, 7),
            (5, 7, 8),
            (5, 6, 8),
            5 * 6 * 7 * 8,
        ),
        # A real convolution, padded to its own length: the two ends miss one place each.
        ("window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", (2, 10, 4), (3, 4, 5), (2, 10, 5), 2 * 4 * 5 * 28),
    ],
)
def test_products_are_counted_by_valid_places(text, left, right, out, products) -> None:
    assert product_flops(conv(text, out), (Shape("bf16", left), Shape("bf16", right))) == 2 * products


def test_a_dot_is_counted_by_what_it_contracts() -> None:
    dot = Instruction("d", "dot", (Shape("f32", (3, 4, 5)),), ("a", "b"), "", "lhs_contracting_dims={2}, rhs_...")
    assert product_flops(dot, (Shape("f32", (3, 4, 7)), Shape("f32", (3, 7, 5)))) == 2 * 3 * 4 * 5 * 7


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x=1", (0, 2)),
        ("replica_groups={}, x=1", tuple(range(8))),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, d={1}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}, d={1}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
    ],
)
def test_groups_in_all_forms(text: str, group: tuple[int, ...]) -> None:
    assert first_group(Instruction("g", "all-gather", (), (), "", text), 8) == group


def test_an_unknown_form_of_groups_is_refused() -> None:
    with pytest.raises(HyperflaxError, match="expected replica groups in a known form"):
        first_group(Instruction("g", "all-gather", (), (), "", "replica_groups=new"), 8)


def test_bytes_of_rings() -> None:
    assert received_bytes("all-gather", 1600, 16) == 1500
    assert received_bytes("reduce-scatter", 1600, 16) == 1500
    # A sum for all is a scattered sum and a gather.
    assert received_bytes("all-reduce", 1600, 16) == 3000
    assert received_bytes("collective-permute", 1600, 2) == 1600


def test_the_table_of_chips() -> None:
    assert {chip.name for chip in CHIPS} == {"v4", "v5e", "v5p", "v6e"}
    for chip in CHIPS:
        assert chip.peak in PEAK_FLOPS.values()
    # "Bidirectional inter-chip interconnect bandwidth per chip": 400 GB/s of four links, 1200 of six.
    assert 4 * 2 * chip_of("v5e").link_bandwidth == 400e9
    assert 6 * 2 * chip_of("v5p").link_bandwidth == 1200e9
    assert chip_of("v5e").peak == 197e12


def test_links_of_a_group() -> None:
    chip = chip_of("v5e")
    whole = [(x, y, 0) for y in range(16) for x in range(16)]
    assert bandwidth(range(16), chip, (16, 16), whole) == 100e9  # a ring: two links
    assert bandwidth(range(256), chip, (16, 16), whole) == 200e9
    small = [(x, y, 0) for y in range(4) for x in range(4)]
    assert bandwidth(range(4), chip, (4, 4), small) == 50e9  # a line: no way round


def test_the_estimate() -> None:
    chip, places = chip_of("v5e"), [(x, 0, 0) for x in range(16)]
    group, second = tuple(range(16)), int(100e9)
    hidden = Collective("all-gather", group, second, 2, "", overlapped_flops=int(197e12) // 4)
    found = estimate(Work(int(197e12) * 3, int(819e9) * 2, [hidden]), chip, (16,), places)
    assert (found.compute, found.memory, found.communication) == (3.0, 2.0, 2.0)
    assert found.exposed == pytest.approx(1.5)  # a quarter of a second is hidden, twice
    assert found.step == pytest.approx(4.5)
    much = estimate(Work(1, 1, [Collective("all-gather", group, 1, 1, "", int(1e15))]), chip, (16,), places)
    assert much.exposed == 0.0


def test_topologies_are_read() -> None:
    assert parse_topology("v5p:4x4x8") == (chip_of("v5p"), (4, 4, 8))
    with pytest.raises(ConfigError, match="expected a chip and a shape such as"):
        parse_topology("v5e")
    with pytest.raises(ConfigError, match="chip: expected one of"):
        parse_topology("v9:2x2")


def counted(depth: int, *, unrolled: bool) -> int:
    def loss(kernels, x):
        def layer(x, kernel):
            return x + jnp.tanh(x @ kernel), None

        x, _ = jax.lax.scan(layer, x, kernels, unroll=depth if unrolled else 1)
        return jnp.sum(x)

    kernels = jax.ShapeDtypeStruct((depth, 64, 64), jnp.float32)
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return walk(parse(gradient.lower(kernels, x).compile().as_text()), devices=1).flops


def test_a_loop_counts_as_unrolled_layers_extrapolated_from_two_depths() -> None:
    """Three products a layer: forward, gradient of the activations, gradient of the kernel."""
    two, four = counted(2, unrolled=True), counted(4, unrolled=True)
    assert two == 2 * 3 * 2 * 32 * 64 * 64
    assert counted(10, unrolled=False) == four + 3 * (four - two)
