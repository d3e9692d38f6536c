"""The profile of the hot paths: operations are put down to the part that they were written for, products counted."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks.peers.case import quick
from benchmarks.peers.cases import CASES
from benchmarks.profile import REST, Cost, Operation, costs, main, part_of, table
from hyperflax.compile.hlo import parse

LAYER = "jit(step)/jvp(T5)/T5.encode/encoder/encoder.run/layers_0/EncoderLayer"

PROGRAM = f"""HloModule jit_step, is_scheduled=true

%body (p.0: f32[8,16], p.1: f32[16,4]) -> f32[8,4] {{
  %p.0 = f32[8,16]{{1,0}} parameter(0)
  %p.1 = f32[16,4]{{1,0}} parameter(1)
  ROOT %dot.1 = f32[8,4]{{1,0}} dot(%p.0, %p.1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

ENTRY %main (x: f32[8,16], w: f32[16,4]) -> f32[8,4] {{
  %x = f32[8,16]{{1,0}} parameter(0)
  %w = f32[16,4]{{1,0}} parameter(1)
  %fusion.1 = f32[8,4]{{1,0}} fusion(%x, %w), calls=%body, metadata={{op_name="{LAYER}/mlp/wi_0/dot_general"}}
  %dot.2 = f32[8,4]{{1,0}} dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %add.1 = f32[8,4]{{1,0}} add(%fusion.1, %dot.2), metadata={{op_name="{LAYER}/mlp/add"}}
}}
"""


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (f"{LAYER}/attention/query/dot_general", "attention"),
        (f"{LAYER}/attention/attention._attend/rhqk,rhkd->rhqd/dot_general", "scores and weighted values"),
        (f"{LAYER}/mlp/wo/dot_general", "MLP"),
        (f"{LAYER}/pre_mlp_layer_norm/mul", "layer norms"),
        ("jit(step)/transpose(jvp(T5))/T5.decode/T5._logits/decoder.logits/logits_dense/dot_general", "logits"),
        ("jit(step)/mul", REST),
        ("", REST),
    ],
)
def test_an_operation_belongs_to_the_part_it_was_written_for(path: str, part: str) -> None:
    assert part_of(path) == part


def test_times_and_products_are_added_up_by_part() -> None:
    seen = [Operation(4, "fusion.1", 30.0), Operation(4, "fusion.1", 20.0), Operation(4, "dot.2", 5.0)]
    others = [Operation(4, "add.1", 7.0), Operation(4, "gone", 1e9), Operation(6, "add.1", 1e9)]
    product = 2 * 8 * 16 * 4
    assert costs([*seen, *others], {4: parse(PROGRAM)}) == {
        ("MLP", True): Cost(2, 50.0, 2 * product),
        ("MLP", False): Cost(1, 7.0, 0),
        (REST, True): Cost(1, 5.0, product),
    }


def test_a_table_has_times_of_one_call_and_shares_of_all() -> None:
    found = {("MLP", True): Cost(2, 3e6, 6_000_000_000), ("layer norms", False): Cost(2, 1e6, 0)}
    assert table("train", 0.25, found, calls=2).splitlines()[2:] == [
        "| part | ms | share | GFLOP/s |",
        "|---|---|---|---|",
        "| MLP, products | 1.5 | 75.0% | 2000 |",
        "| layer norms | 0.5 | 25.0% |  |",
    ]


def test_a_training_step_is_traced(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    main(["--only", "train_lora", "--quick", "--calls", "2", "--out", str(tmp_path / "profile.json")])
    assert "| MLP, products |" in capsys.readouterr().out
    [report] = json.loads((tmp_path / "profile.json").read_text())["programs"]
    found = {(part, product): Cost(*cost) for part, product, *cost in report["costs"]}
    # Of a frozen T5, in two calls: the three products of an MLP over every token, forward and to the activations.
    case = quick(CASES["train_lora"])
    entry = case.entries["hyperflax"]
    tokens = entry.rows * (entry.source + entry.target)
    assert found["MLP", True].flops == 2 * 2 * 3 * 2 * tokens * case.shape.emb_dim * case.shape.mlp_dim * entry.layers
    assert {"attention", "logits", "scores and weighted values"} <= {part for part, product in found if product}
