"""`hyperflax export`: an adapter for other software."""

from __future__ import annotations

import argparse

DESCRIPTION = """Write an adapter in a form that other software reads.

  hyperflax export names_adapter --format peft --out names_peft
  hyperflax export names_adapter --format merged --base flan-t5-small --out names_model

peft: a directory that PeftModel.from_pretrained loads onto T5ForConditionalGeneration. merged: the whole model in
transformers' form with the adapter in its weights (LoRA and full fine-tuning). What a form cannot express is refused
with the reason.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter", metavar="ADAPTER_DIR", help="from `hyperflax adapt`, `finetune`, `tune run` or `import`"
    )
    parser.add_argument("--format", required=True, choices=("peft", "merged"))
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--base", metavar="DIR", help="its base model, in any form that `hyperflax convert` reads; merged needs it"
    )


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.adapters.kinds import refuse
    from hyperflax.checkpoints.artefacts import load_adapter
    from hyperflax.checkpoints.exchange import with_base, write_merged
    from hyperflax.checkpoints.forms import read_model
    from hyperflax.checkpoints.peft import require_expressible, write_peft
    from hyperflax.cli.progress import byte_bar
    from hyperflax.errors import ConfigError
    from hyperflax.files import require_directory_place
    from hyperflax.hypermodel import shipped

    require_directory_place(arguments.out)
    adapter = load_adapter(arguments.adapter)
    if arguments.format == "merged":
        if not arguments.base:
            raise ConfigError("--format merged: expected --base, the model that the adapter is to be merged into")
        refuse(adapter.spec, "merge")
    elif arguments.base:
        require_expressible(adapter)
    base = None
    if arguments.base:
        with byte_bar("read") as progress:
            base = read_model(shipped(arguments.base), progress=progress)
    if base is None:
        write_peft(arguments.out, adapter)
    elif arguments.format == "peft":
        # What PEFT's users load by this name is of transformers; it would ask a hub for any other.
        name, depth = arguments.base if base.form == "huggingface" else None, base.config.num_decoder_layers
        write_peft(arguments.out, with_base(adapter, base), base_name=name, decoder_layers=depth)
    else:
        with byte_bar("written") as progress:
            write_merged(arguments.out, adapter, base, progress=progress)
    print(f"{arguments.out}: {arguments.format}, from {arguments.adapter}")
    return 0
