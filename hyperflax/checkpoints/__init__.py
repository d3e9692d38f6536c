"""Parameters and adapters on disk: T5X checkpoints in, adapter and model directories in and out.

- `t5x`, `t5x_index`, `zarr`, `t5x_writer`: T5X's legacy checkpoints, without T5X or TensorFlow; `orbax_form`: others.
- `huggingface`, `hf_*`: T5 weights and vocabularies in Hugging Face's form, without torch; `peft*`: adapters in PEFT's.
- `layouts`, `forms`: unrolled, scanned, scalable; any form in, any form out. `lazy`: leaves made when they are written.
- `onto_mesh`: straight to where the parameters are to lie. `parity`, `convert`: is it the same?
- `shapes`: whether parameters fit a T5, and which T5 they make.
- `fingerprint`: which base model, which examples.
- `tensors`: nested trees in safetensors files (written by way of `hyperflax.files`).
- `documents`: a json document beside a safetensors tree, each checked against the other.
- `artefacts`, `model_directory`: the two directories that users keep, an adapter and a hypermodel.
"""

from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, check_base, load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint, support_hash
from hyperflax.checkpoints.model_directory import (
    ModelParts,
    collect_files,
    load_model_directory,
    save_model_directory,
)
from hyperflax.checkpoints.shapes import check_shapes, from_scalable, infer_t5_config
from hyperflax.checkpoints.t5x import read_t5x_checkpoint
from hyperflax.checkpoints.tensors import load_tree, rounded, save_tree

__all__ = [
    "Adapter",
    "AdapterMetadata",
    "ModelParts",
    "check_base",
    "check_shapes",
    "collect_files",
    "fingerprint",
    "from_scalable",
    "infer_t5_config",
    "load_adapter",
    "load_model_directory",
    "load_tree",
    "read_t5x_checkpoint",
    "rounded",
    "save_model_directory",
    "save_tree",
    "support_hash",
]
