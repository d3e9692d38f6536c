"""Whole commands whose data, base, runs, models, reports and adapters lie in a bucket, beside the same on a disk."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator

import pytest

from hyperflax.cli.main import main
from hyperflax.data import registry
from hyperflax.evaluation.report import read_report
from tests.checkpoints.bucket_server import serve
from tests.test_end_to_end import BASE, COMMON, HYPERMODEL, IMPORTS, TOY


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, pathlib.Path]]:
    """Where everything ends up, `disk` and `bucket` (the folder behind it), made by the same commands."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "toy_bucket_module.py").write_text(TOY.replace('"toy"', '"toy_in_bucket"'))
    common = COMMON.replace(
        "registry.load_source.name = 'toy'", "CACHE = %gin.REQUIRED\nregistry.load_source.name = %CACHE"
    )
    # Names of their own: gin looks in the folders of every earlier job of this process, too, and in those first.
    for name, content in {"common": common, "base": BASE, "hypermodel": HYPERMODEL}.items():
        content = content.replace("include 'common.gin'", "include 'bucket_common.gin'")
        (folder / f"bucket_{name}.gin").write_text(IMPORTS + content)
    examples = folder / "examples.jsonl"
    examples.write_text("".join(json.dumps({"input": text, "target": text.upper()}) + "\n" for text in ("ae", "bf")))
    behind = folder / "behind"
    behind.mkdir()
    sys.path.insert(0, str(folder))
    module = ["--module", "toy_bucket_module"]

    def run(*arguments: str) -> None:
        assert main(list(arguments)) == 0, arguments

    def everything(name: str, place: str) -> None:
        run("cache", "--mixture", "toy_in_bucket", "--out", f"{place}/cache", *module)
        flags = [f"--gin_search_paths={folder}", f"--gin.CACHE='{place}/cache'"]
        start = f"--gin.INITIAL_CHECKPOINT_PATH='{place}/base/model'"
        run("train", "--gin_file=bucket_base.gin", f"--gin.MODEL_DIR='{place}/base'", *flags)
        # Stopped after two steps, and gone on with.
        for steps in (2, 4):
            hyper = f"--gin.MODEL_DIR='{place}/hyper'"
            run("train", "--gin_file=bucket_hypermodel.gin", hyper, start, f"--gin.TRAIN_STEPS={steps}", *flags)
        model = ["--model", f"{place}/hyper/model"]
        asked = ["--mixture", "toy_in_bucket", "--split", "held_out", "--examples", "3", "--refine", "1"]
        run("evaluate", *model, *asked, "--out", f"{place}/report", *module)
        run("adapt", *model, "--examples", str(examples), "--out", f"{place}/adapter", "--no-estimate")
        answers = ["--inputs", str(examples), "--out", str(folder / f"answers-{name}.jsonl")]
        run("predict", *model, "--adapter", f"{place}/adapter", *answers)

    with serve(behind) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        everything("disk", str(folder / "disk"))
        everything("bucket", "s3://bucket/jobs")
        yield {"disk": folder / "disk", "bucket": behind / "jobs", "folder": folder}
    sys.path.remove(str(folder))
    registry.unregister_source("toy_in_bucket")


def test_models_and_adapters_are_those_of_the_disk_bit_for_bit(places: dict[str, pathlib.Path]) -> None:
    for name in ("base/model", "hyper/model", "adapter"):
        files = {path.name for path in (places["disk"] / name).iterdir()}
        assert files == {path.name for path in (places["bucket"] / name).iterdir()}
        tensors = [file for file in files if file.endswith(".safetensors")]
        assert tensors
        for file in tensors:
            assert (places["bucket"] / name / file).read_bytes() == (places["disk"] / name / file).read_bytes(), file


def test_logs_and_reports_say_the_same(places: dict[str, pathlib.Path]) -> None:
    for name in ("base", "hyper"):
        losses = []
        for place in ("disk", "bucket"):
            run = places[place] / name
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            losses.append([(row["step"], row["kind"], row.get("loss")) for row in rows])
            assert (run / "loss.png").is_file()
            assert (run / "operative_config.gin").is_file()
            assert list((run / "tensorboard").iterdir())
        assert losses[0] == losses[1]
    reports = [read_report(places[place] / "report" / "report.json") for place in ("disk", "bucket")]
    assert reports[0]["conditions"] == reports[1]["conditions"]
    assert reports[0]["per_task"] == reports[1]["per_task"]
    assert (places["bucket"] / "report" / "report.png").is_file()


def test_predictions_are_the_same(places: dict[str, pathlib.Path]) -> None:
    disk, bucket = (places["folder"] / f"answers-{place}.jsonl" for place in ("disk", "bucket"))
    assert disk.read_text() == bucket.read_text()
