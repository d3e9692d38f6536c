"""Where the time of the hot paths goes, by part of the network: training steps, generating, decoding.

    python -m benchmarks.profile [--only train_lora] [--calls 4] [--quick] [--out FILE]

Each program is the one that `benchmarks/peers` times beside others, in a process of its own. It is traced by JAX's
profiler, and every operation of the trace is put down to the part that it was written for: XLA keeps the module and
the operation of the source in each instruction of a compiled program. Where XLA fuses several parts, the fusion counts
for the one that it is named after. Shares are of the time of all operations; on a CPU several run at once, so those
times add up to more than a call takes.

A row of the table: part, milliseconds and share of a call, and for matrix products their operations per second.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.peers.case import Case, Entry, quick
from benchmarks.peers.cases import CASES
from hyperflax.cli.host_memory import keep_freed_memory
from hyperflax.compile.hlo import Computation, Instruction, Module, parse
from hyperflax.compile.products import product_flops
from hyperflax.compile.walk import PRODUCTS
from hyperflax.json_files import write_json
from hyperflax.versions import versions

# What is traced: {name: (case, entry)} of benchmarks/peers.
PROGRAMS = {
    "train_full": ("train_full", "hyperflax"),
    "train_lora": ("train_lora", "hyperflax"),
    "generate": ("generation", "generate_1024"),
    "decode": ("decode_greedy", "hyperflax"),
    "decode_mixed": ("decode_mixed", "lora8"),
}
# The first that an operation's path holds. Paths are `jit(step)/.../layers_3/EncoderLayer/mlp/wi_0/dot_general`.
PARTS = {
    "logits": r"logits",
    "scores and weighted values": r"_attend",
    "attention": r"attention(/|\.)",
    "MLP": r"/mlp/",
    "layer norms": r"norm/",
    "heads of the hypernetwork": r"heads|slots",
    "embeddings and masks": r"token_embed|T5\.(en|de)code/[^/]*$|relpos|relative|embed",
}
REST = "the rest: loss, optimizer, caches, choice of tokens"
# Instructions whose time is that of others.
_CONTAINERS = ("while", "call", "conditional")


class Operation(NamedTuple):
    """One that a trace has seen: the number of its program, its name there, nanoseconds."""

    program: int
    name: str
    nanoseconds: float


class Cost(NamedTuple):
    """What a part costs: operations seen, nanoseconds, operations of its matrix products."""

    count: int = 0
    nanoseconds: float = 0.0
    flops: int = 0


def part_of(path: str) -> str:
    """The part of the network that an operation belongs to, by where it stands in the source.

    >>> part_of("jit(step)/jvp(T5)/T5.encode/encoder/layers_0/EncoderLayer/mlp/wi_0/dot_general")
    'MLP'
    """
    return next((part for part, found in PARTS.items() if re.search(found, path)), REST)


def costs(operations: Iterable[Operation], programs: Mapping[int, Module]) -> dict[tuple[str, bool], Cost]:
    """Adds operations up by part: {(part, whether it has matrix products): its cost}, the dearest first."""
    homes = {
        (number, instruction.name): (instruction, body)
        for number, module in programs.items()
        for body in module.computations.values()
        for instruction in body
    }
    found: dict[tuple[str, bool], Cost] = collections.defaultdict(Cost)
    for operation in operations:
        home = homes.get((operation.program, operation.name))
        if home is None or home[0].opcode in _CONTAINERS:
            continue
        instruction, body = home
        flops = sum(_products(instruction, body, programs[operation.program]))
        path = re.search(r'op_name="([^"]*)"', instruction.attributes)
        key = part_of(path[1] if path else ""), flops > 0
        before = found[key]
        found[key] = Cost(before.count + 1, before.nanoseconds + operation.nanoseconds, before.flops + flops)
    return dict(sorted(found.items(), key=lambda item: -item[1].nanoseconds))


def _products(instruction: Instruction, body: Computation, module: Module) -> Iterator[int]:
    """Yields the operations of every matrix product in an instruction of `body`."""
    if instruction.opcode in PRODUCTS:
        yield product_flops(instruction, [body[name].shapes[0] for name in instruction.operands])
    for name in instruction.called:
        for inner in module.computations[name]:
            yield from _products(inner, module.computations[name], module)


def table(name: str, seconds: float, found: Mapping[tuple[str, bool], Cost], calls: int) -> str:
    """A markdown table of one program."""
    whole = sum(cost.nanoseconds for cost in found.values())
    rows = [f"### {name}: {seconds:.3f} s a call\n", "| part | ms | share | GFLOP/s |", "|---|---|---|---|"]
    for (part, product), cost in found.items():
        rate = f"{cost.flops / cost.nanoseconds:.0f}" if product else ""
        says = f"{part}, products" if product else part
        rows.append(f"| {says} | {cost.nanoseconds / calls / 1e6:.1f} | {cost.nanoseconds / whole:.1%} | {rate} |")
    return "\n".join(rows) + "\n"


def trace(name: str, entry: Entry, case: Case, calls: int, dumped: pathlib.Path) -> dict[str, Any]:
    """Runs a program and returns what its calls cost; XLA must have been told to write its programs to `dumped`."""
    import jax

    from benchmarks.peers import hyperflax_side
    from benchmarks.peers.materials import write_materials
    from benchmarks.peers.worker import first

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_materials(entry, case.shape, folder)
        call = getattr(hyperflax_side, entry.program)(entry, case.shape, folder)
        first(call, entry)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - began) / calls
        with jax.profiler.trace(str(folder / "trace")):
            for _ in range(calls):
                call()
        operations = list(_operations(next((folder / "trace").rglob("*.xplane.pb"))))
    programs = {}
    for path in dumped.glob("module_*after_optimizations.txt"):  # module_0042.jit_step.cpu_after_optimizations.txt
        programs[int(path.name.split(".")[0].removeprefix("module_"))] = parse(path.read_text())
    found = costs(operations, programs)
    if not found:
        raise SystemExit(
            f"{name}: the trace has {len(operations)} operations, none of them in {len(programs)} programs"
        )
    return {"name": name, "seconds": seconds, "calls": calls, "costs": [[*key, *cost] for key, cost in found.items()]}


def _operations(file: pathlib.Path) -> Iterator[Operation]:
    """Yields what the threads and devices of a trace have run."""
    from jax.profiler import ProfileData

    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                told = dict(event.stats)
                if "hlo_op" in told and "program_id" in told:
                    yield Operation(int(told["program_id"]), event.name, event.duration_ns)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PROGRAMS, metavar="PROGRAM", help=", ".join(PROGRAMS))
    parser.add_argument("--calls", type=int, default=4, help="that are traced (4)")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="also write the figures, as json")
    parser.add_argument("--dumped", type=pathlib.Path, help=argparse.SUPPRESS)  # a process of one program
    arguments = parser.parse_args(argv)
    if arguments.dumped:
        [name] = arguments.only
        case = CASES[PROGRAMS[name][0]]
        case = quick(case) if arguments.quick else case
        entry = case.entries[PROGRAMS[name][1]]
        print(json.dumps(trace(name, entry, case, arguments.calls, arguments.dumped)))
        return
    reports = []
    for name in arguments.only or PROGRAMS:
        report = _in_a_process(name, arguments)
        reports.append(report)
        found = {(part, product): Cost(*cost) for part, product, *cost in report["costs"]}
        print(table(name, report["seconds"], found, arguments.calls), flush=True)
    if arguments.out:
        write_json(arguments.out, {"programs": reports, "versions": versions()})


def _in_a_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """XLA reads where to write its programs once, when it starts, and writes none that comes from a cache."""
    with tempfile.TemporaryDirectory() as dumped:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dumped} --xla_dump_hlo_as_text"
        command = [sys.executable, "-m", "benchmarks.profile", "--only", name, "--calls", str(arguments.calls)]
        command += ["--dumped", dumped, *(["--quick"] if arguments.quick else [])]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
