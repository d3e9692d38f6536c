"""`hyperflax compile` with the real TPU compiler, for a slice of four chips."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import types
from unittest import mock

import gin
import jax
import pytest

from hyperflax.cli import compile as cli
from hyperflax.cli.main import main
from hyperflax.errors import MissingExtraError

RUN = "hyperflax_gin_configs/runs/strings_hypermodel.gin"
# One layer each, one example: most of the time is compilation.
SMALL = (
    "--gin.types.T5Config.num_encoder_layers=1",
    "--gin.types.T5Config.num_decoder_layers=1",
    "--gin.HypernetworkOf.scan_layers=True",
    "--gin.LoRA.rank=2",
    "--gin.LoRA.sites=('*/query',)",
    "--gin.BATCH_SIZE=8",
    "--gin.make_optimizer.name='adamw'",  # what Muon multiplies is far more than so small a model does
)


def compile_(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-m", "hyperflax", "compile", f"--gin_file={RUN}", *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_run_is_compiled_for_four_chips(tpu_library: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.json"
    done = compile_("--topology=v5e:2x2", f"--out={out}", TPU_LIBRARY_PATH=str(tpu_library))
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(out.read_text())["reports"]
    assert (report["chips"], report["mesh"], report["tasks"]) == (4, {"data": 4, "fsdp": 1, "model": 1}, 8)
    assert report["hbm"]["capacity"] == 16e9
    # Adapters and heads add to what the model counts. It also counts the lowest layer's gradients with respect to its
    # inputs, which nobody asks for: a large part of a model of one layer. Nothing is rematerialised.
    assert 0.9 < report["chips"] * report["executed_flops"] / report["model_flops"] < 1.5
    # Gradients of all parameters are summed over the four chips once, and nothing else is moved.
    (row,) = report["collectives"]
    assert (row["kind"], row["group"]) == ("all-reduce", 4)
    assert "implied MFU" in done.stdout


def test_of_a_curriculum_the_stage_with_the_largest_batches_is_compiled() -> None:
    """The run's first stage has rows of 26 tokens in, 24 out."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    bindings = [binding.removeprefix("--gin.") for binding in SMALL]
    given = [f"--gin_file={RUN}", "--topology=v5e:2x2"]
    arguments = parser.parse_args(given, argparse.Namespace(gin_bindings=bindings))
    try:
        batch = cli.program("train", arguments, jax.devices()[:1]).arguments[2]
    finally:
        gin.clear_config()
    assert {name: batch[name].shape for name in ("encoder_input_tokens", "decoder_target_tokens")} == {
        "encoder_input_tokens": (8, 4, 44),
        "decoder_target_tokens": (8, 4, 40),
    }


HOLD = """
import sys
from hyperflax.compile.topology import topology_devices

print(len(topology_devices("v5e:2x2")), flush=True)
sys.stdin.read()
"""


def test_two_processes_compile_beside_each_other(tpu_library: pathlib.Path) -> None:
    """The library itself lets only one process load it at a time, for the sake of chips."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_LIBRARY_PATH": str(tpu_library)}
    environment.pop("ALLOW_MULTIPLE_LIBTPU_LOAD", None)
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "4\n"  # and it goes on holding the library
        second = subprocess.run(command, input="", capture_output=True, text=True, env=environment)
        assert (second.returncode, second.stdout) == (0, "4\n"), second.stderr
        first.stdin.close()


def test_the_compiler_has_a_device_for_each_chip_of_every_kind(tpu_library: pathlib.Path) -> None:
    """Two cores of a v4 are one device, as JAX has them on a slice that is there."""
    names = ["v4:2x2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4"]
    code = f"from hyperflax.compile.topology import *; print(*(len(topology_devices(name)) for name in {names}))"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_LIBRARY_PATH": str(tpu_library)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["8"] * len(names), done.stderr


def test_files_hold_what_was_compiled_before_a_program_that_is_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not fit has no text; behind it, one that this run has not, which costs no report."""
    hbm = {"total": 2, "capacity": 1, "refusal": "no"}
    report = {"program": "", "topology": "", "chips": 4, "mesh": {}, "hbm": hbm}
    monkeypatch.setattr(cli, "jax", mock.Mock())  # whose settings are this process's
    monkeypatch.setattr(cli, "topology_devices", lambda topology: [])
    monkeypatch.setattr(cli, "program", lambda name, arguments, devices: types.SimpleNamespace(name=name))
    texts = {"train": "HloModule train", "generate": ""}
    monkeypatch.setattr(cli, "compile_program", lambda program, topology: (report, texts[program.name]))
    out, hlo = tmp_path / "out.json", tmp_path / "program.txt"
    asked = ["compile", f"--gin_file={RUN}", "--topology=v5e:2x2", f"--out={out}", f"--hlo={hlo}"]
    assert main([*asked, "--program=train", "--program=generate"]) == cli.DOES_NOT_FIT
    assert hlo.read_text() == "HloModule train"
    hlo.unlink()
    with pytest.raises(KeyError):
        main([*asked, "--program=generate", "--program=decode"])
    assert not hlo.exists()
    assert json.loads(out.read_text()) == {"reports": [report]}


def test_without_the_compiler_the_answer_is_a_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperflax.compile import topology

    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hyperflax\[tpu\]'"):
        topology.topology_devices("v5e:2x2")


@pytest.mark.parametrize("flag", ["--multiprocess", "--tfds_data_dir=data"])
def test_flags_of_a_job_that_runs_are_refused(flag: str, capsys: pytest.CaptureFixture) -> None:
    """It joins no hosts and reads no data."""
    with pytest.raises(SystemExit, match="2"):
        main(["compile", "--topology=v5e:1x1", flag])
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err
