"""Compiles a program and says what came out, as json and as a table."""

from __future__ import annotations

import re
import time
from typing import Any

import jax

from hyperflax.compile.chips import Chip
from hyperflax.compile.hlo import parse
from hyperflax.compile.programs import Program
from hyperflax.compile.roofline import bandwidth, estimate
from hyperflax.compile.topology import parse_topology
from hyperflax.compile.walk import Work, walk

GB = 1e9
# "Used 16.02G of 15.75G hbm", or "required ... (16.02G) exceeds available HBM (15.75G)".
_TOO_LARGE = re.compile(r"([\d.]+)([KMG])(?: of |\) exceeds available HBM \()([\d.]+)([KMG])(?: hbm|\))")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def compile_program(program: Program, topology: str) -> tuple[dict[str, Any], str]:
    """Returns (the report, the compiled program's text; empty where it does not fit).

    The report holds plain numbers: bytes, operations and seconds, for one chip unless it says otherwise.
    """
    chip, shape = parse_topology(topology)
    began = time.monotonic()
    lowered = program.lower()
    lowering = time.monotonic() - began
    report: dict[str, Any] = {
        "program": program.name,
        "topology": topology,
        "chips": program.mesh.size,
        "mesh": dict(program.mesh.shape),
        "tasks": program.rows,
        "model_flops": program.model_flops,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report["hbm"] = _refused(str(error))
        report["seconds"] = {"lowering": round(lowering, 1), "compiling": round(time.monotonic() - began - lowering, 1)}
        return report, ""
    compiling = time.monotonic() - began - lowering
    text = compiled.as_text() or ""
    work = walk(parse(text), program.mesh.size)
    coordinates = [device.coords for device in program.mesh.devices.flat]
    times = estimate(work, chip, shape, coordinates)
    report |= {
        "hbm": _memory(compiled.memory_analysis(), chip),
        "executed_flops": work.flops,
        "memory_bytes": work.nbytes,
        "collectives": _collectives(work, chip, shape, coordinates),
        "loops": work.loops,
        "seconds": {"lowering": round(lowering, 1), "compiling": round(compiling, 1)},
        "estimate": {
            "compute": times.compute,
            "memory": times.memory,
            "communication": times.communication,
            "exposed_communication": times.exposed,
            "step": times.step,
        },
        "mfu": program.model_flops / (program.mesh.size * chip.peak * times.step),
    }
    return report, text


def fits(report: dict[str, Any]) -> bool:
    """Returns whether the compiler has taken the program: it knows the chip's memory better than its published size."""
    return "refusal" not in report["hbm"]


def _memory(stats: Any, chip: Chip) -> dict[str, int]:
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**found, "total": sum(found.values()), "capacity": chip.hbm_bytes}


def _refused(message: str) -> dict[str, Any]:
    """What the compiler says that the program needs and that it has; neither where it was not the chip's memory."""
    sizes = {}
    if match := _TOO_LARGE.search(message):
        sizes["total"] = int(float(match[1]) * _UNITS[match[2]])
        sizes["capacity"] = int(float(match[3]) * _UNITS[match[4]])
    return {**sizes, "refusal": message.split("\n\n")[0][:2000]}


_SUMS = ("count", "bytes", "seconds", "exposed_seconds")


def _collectives(work: Work, chip: Chip, shape: tuple[int, ...], coordinates: list) -> list[dict[str, Any]]:
    """Sums by kind and size of group, the longest first."""
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for one in work.collectives:
        row = rows.setdefault((one.kind, len(one.group)), dict.fromkeys(_SUMS, 0.0))
        seconds = one.times * one.received / bandwidth(one.group, chip, shape, coordinates)
        hidden = min(seconds, one.times * one.overlapped_flops / chip.peak)
        for name, value in zip(_SUMS, (one.times, one.times * one.received, seconds, seconds - hidden), strict=True):
            row[name] += value
    longest = sorted(rows.items(), key=lambda item: -item[1]["seconds"])
    return [{"kind": kind, "group": group, **row} for (kind, group), row in longest]


def table(report: dict[str, Any]) -> str:
    """Returns the report as text for a terminal."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    hbm = report["hbm"]
    lines = [f"{report['program']} on {report['topology']}: {report['chips']} chips, {mesh}", ""]
    lines += [f"  {'memory of a chip':24}{'GB':>10}"]
    lines += [f"  {name:24}{value / GB:10.2f}" for name, value in hbm.items() if isinstance(value, int)]
    verdict = "fits" if fits(report) else "does NOT fit"
    lines += [f"  {verdict}", ""]
    if "refusal" in hbm:
        return "\n".join([*lines, hbm["refusal"]])
    times = report["estimate"]
    executed = report["executed_flops"] * report["chips"]
    lines += [
        f"  {'operations':24}{executed / 1e15:10.2f} PFLOP executed, {report['model_flops'] / 1e15:.2f} of the model",
        f"  {'memory traffic':24}{report['memory_bytes'] / GB:10.2f} GB a chip",
        "",
        f"  {'communication of a chip':24}{'group':>6}{'times':>8}{'GB':>10}{'ms':>10}{'not hidden':>12}",
    ]
    lines += [
        f"  {row['kind']:24}{row['group']:6}{row['count']:8.0f}{row['bytes'] / GB:10.3f}{1e3 * row['seconds']:10.2f}"
        f"{1e3 * row['exposed_seconds']:12.2f}"
        for row in report["collectives"]
    ]
    lines += [
        "",
        f"  {'estimated step':24}{1e3 * times['step']:10.1f} ms = max(products {1e3 * times['compute']:.1f}, memory "
        f"{1e3 * times['memory']:.1f}) + communication {1e3 * times['exposed_communication']:.1f}",
        f"  {'implied MFU':24}{report['mfu']:10.1%}",
        f"  {'compiled in':24}{report['seconds']['lowering'] + report['seconds']['compiling']:10.1f} s",
    ]
    return "\n".join(lines)
