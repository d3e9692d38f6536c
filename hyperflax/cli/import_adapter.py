"""`hyperflax import`: an adapter from PEFT."""

from __future__ import annotations

import argparse
import dataclasses

DESCRIPTION = """Read an adapter of PEFT, LoRA, prefix or prompt tuning, and write it as hyperflax keeps adapters.

  hyperflax import names_peft --out names_adapter
  hyperflax import their_adapter --base flan-t5-small --out their_adapter_here

An adapter that `hyperflax export` wrote, unchanged since, knows its base model. Any other one does not: --base names
it, checks that the adapter fits it, and notes its fingerprint.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="PEFT_DIR", help="what PeftModel.save_pretrained wrote")
    parser.add_argument(
        "--out", required=True, metavar="ADAPTER_DIR", help="folder to write; must not exist yet, or be empty"
    )
    parser.add_argument("--base", metavar="DIR", help="the base model, in any form that `hyperflax convert` reads")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.checkpoints.exchange import with_base
    from hyperflax.checkpoints.forms import read_model
    from hyperflax.checkpoints.peft import read_peft
    from hyperflax.cli.progress import byte_bar
    from hyperflax.files import require_directory_place
    from hyperflax.hypermodel import shipped

    require_directory_place(arguments.out, in_bucket=True)
    base = None
    if arguments.base:
        with byte_bar("read") as progress:
            base = read_model(shipped(arguments.base), progress=progress)
    adapter = read_peft(arguments.source, decoder_layers=base.config.num_decoder_layers if base else None)
    if base is not None:
        adapter = with_base(adapter, base)
    metadata = dataclasses.replace(adapter.metadata, created_with="hyperflax import")
    dataclasses.replace(adapter, metadata=metadata).save(arguments.out)
    made_for = adapter.metadata.base_fingerprint or "unknown: give --base before it can be used"
    print(f"{arguments.out}: adapter of {adapter.spec.num_parameters:,} values; base model: {made_for}")
    return 0
