"""`hyperflax train`: a gin-configured training job."""

from __future__ import annotations

import argparse

from hyperflax.cli import gin_jobs

DESCRIPTION = """Run the training job that gin files describe, with T5X's flags and macro names.

  hyperflax train --gin_file=hyperflax_gin_configs/runs/strings_base.gin --gin.MODEL_DIR=runs/strings_base

A run is its folder: called again with the same MODEL_DIR it goes on from its last checkpoint. The folder holds
checkpoints/, metrics.jsonl, tensorboard/, loss.png, config.gin, operative_config.gin and, at the end, model/, which
`hyperflax adapt --model MODEL_DIR/model` and later jobs take.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gin_jobs.add_job_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    directory = gin_jobs.run_job(gin_jobs.TRAINING, arguments)
    print(f"exported to {directory}")
    return 0
