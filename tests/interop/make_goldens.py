"""Writes tests/interop/goldens: small random models and adapters from transformers and PEFT, and what they compute.

Run in the interop environment (`make goldens-interop`); the ordinary tests hold hyperflax to the files without torch.

    models/FAMILY/{config.json, model.safetensors}     saved by transformers
    models/FAMILY/outputs.npz                          inputs, every layer's output, logits, greedy tokens
    peft/NAME/                                         saved by PEFT; outputs.npz as above, with the adapter
    exported/NAME/                                     written by hyperflax; outputs.npz as PEFT computes with it
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from tests.interop.adapters import EXPORTED
from tests.interop.families import FAMILIES, inputs

GOLDENS = pathlib.Path(__file__).resolve().parent / "goldens"
CLASSES = {
    "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
    "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    "umt5": (transformers.UMT5Config, transformers.UMT5ForConditionalGeneration),
}
LENGTH = 12

# What PEFT saves, on which model, with settings that leave defaults behind.
MADE_BY_PEFT = {
    "lora_patterns": (
        "t5_1_1",
        LoraConfig(
            task_type="SEQ_2_SEQ_LM",
            r=3,
            lora_alpha=5,
            target_modules=["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
            rank_pattern={"SelfAttention.q": 2, r"decoder\.block\.1.*wo": 4},
            alpha_pattern={"EncDecAttention.v": 7},
        ),
    ),
    "lora_rslora": (
        "t5_1_0",
        LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=6, target_modules=["q", "wi"], use_rslora=True),
    ),
    "prefix_odd": ("umt5", PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=8)),
    # PEFT takes num_layers from the encoder: four pairs for two decoder layers.
    "prefix_even": ("byt5", PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, token_dim=8)),
    "prompt": ("umt5", PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)),
}


def build(family: str, seed: int) -> Any:
    """A model with no zero and no one among its parameters."""
    settings = dict(FAMILIES[family])
    tied = settings["tie_word_embeddings"]
    config_class, model_class = CLASSES[settings.pop("model_type")]
    model = model_class(config_class(**settings, attn_implementation="eager")).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = 1.0 if "layer_norm" in name or "shared" in name else 0.3
            parameter.copy_(torch.from_numpy(rng.normal(0, scale, tuple(parameter.shape)).astype(np.float32)))
    return model


def run(model: Any, base: Any) -> dict[str, np.ndarray]:
    """What `model`, which is `base` or wraps it, computes on the inputs of `families.inputs`."""
    encoder_tokens, decoder_tokens = inputs()
    found: dict[str, np.ndarray] = {"encoder_input_tokens": encoder_tokens, "decoder_input_tokens": decoder_tokens}
    handles = []
    for stack in ("encoder", "decoder"):
        for number, block in enumerate(getattr(base, stack).block):

            def keep(module, arguments, output, name=f"{stack}/layers_{number}"):
                hidden = output if isinstance(output, torch.Tensor) else output[0]
                found[name] = hidden.detach().numpy().copy()

            handles.append(block.register_forward_hook(keep))
    source = torch.from_numpy(encoder_tokens.astype(np.int64))
    with torch.no_grad():
        found["logits"] = model(
            input_ids=source,
            attention_mask=(source > 0).long(),
            decoder_input_ids=torch.from_numpy(decoder_tokens.astype(np.int64)),
        ).logits.numpy()
        for handle in handles:
            handle.remove()
        # The first token is the start token, which our decoding does not return.
        found["greedy"] = model.generate(
            input_ids=source,
            attention_mask=(source > 0).long(),
            max_new_tokens=LENGTH,
            do_sample=False,
            num_beams=1,
            use_cache=base.config.use_cache,
        ).numpy()[:, 1:]
    return found


def write_outputs(folder: pathlib.Path, outputs: dict[str, np.ndarray]) -> None:
    np.savez_compressed(folder / "outputs.npz", **outputs)


def load(family: str) -> Any:
    model_class = CLASSES[FAMILIES[family]["model_type"]][1]
    return model_class.from_pretrained(GOLDENS / "models" / family, attn_implementation="eager").eval()


def main() -> None:
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for seed, family in enumerate(FAMILIES):
        folder = GOLDENS / "models" / family
        build(family, seed).save_pretrained(folder, safe_serialization=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = load(family)
        write_outputs(folder, run(model, model))
    for seed, (name, (family, config)) in enumerate(MADE_BY_PEFT.items()):
        base = load(family)
        model = get_peft_model(base, config).eval()
        rng = np.random.default_rng(100 + seed)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    parameter.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(parameter.shape)).astype(np.float32)))
        folder = GOLDENS / "peft" / name
        model.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        config_file = folder / "adapter_config.json"
        settings = json.loads(config_file.read_text())
        settings["base_model_name_or_path"] = family  # not a path of this machine
        config_file.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
        write_outputs(folder, run(model, base))
    for name, (family, write) in EXPORTED.items():
        folder = GOLDENS / "exported" / name
        write(folder)
        base = load(family)
        model = PeftModel.from_pretrained(base, folder).eval()
        write_outputs(folder, run(model, base))


if __name__ == "__main__":
    main()
