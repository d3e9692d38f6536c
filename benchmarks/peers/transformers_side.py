"""The programs of transformers and PEFT, as their documentation writes them; float32 on the processor."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import Adafactor, GenerationConfig, T5ForConditionalGeneration

from benchmarks.peers.case import MATRIX, Entry
from benchmarks.peers.materials import START, adapter_directory, base_directory, tokens
from hyperflax.types import T5Config

Call = Callable[[], Any]


def base(entry: Entry, folder: pathlib.Path) -> Any:
    """Returns a model of its own: PEFT changes the one that it is given, and training its weights."""
    model = T5ForConditionalGeneration.from_pretrained(base_directory(folder, entry.layers), dtype=torch.float32)
    model.generation_config.eos_token_id = None  # every call decodes equally much
    return model


def matmul(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """A product of two square matrices in float32: the rate that the machine reaches."""
    del entry, shape, folder
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32))
    return lambda: matrix @ matrix


def train_full(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """All parameters, with the Adafactor that T5 is trained by."""
    model = base(entry, folder)
    optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False, warmup_init=False)
    return _training(model, optimizer, entry, shape)


def train_lora(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """A LoRA of PEFT's, with torch's fastest AdamW."""
    directory = adapter_directory(folder, entry, START)
    model = PeftModel.from_pretrained(base(entry, folder), directory, is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _training(model, torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True), entry, shape)


def _training(model: Any, optimizer: Any, entry: Entry, shape: T5Config) -> Call:
    """Returns a call that takes one step and gives the mean loss before it."""
    batch = tokens(entry, shape)
    source = torch.from_numpy(batch["encoder_input_tokens"]).long()
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source), "use_cache": False}
    inputs["labels"] = torch.from_numpy(batch["decoder_target_tokens"]).long()
    model.train()

    def call() -> list[float]:
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return [loss.item()]

    return call


def decode(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """One batch, bare or with one adapter for all of it."""
    model = base(entry, folder)
    if entry.adapter:
        model = PeftModel.from_pretrained(model, adapter_directory(folder, entry, 0))
    return _decoding(model, entry, shape)


def decode_mixed(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Each row with an adapter of its own, by PEFT's mixed batches."""
    names = [str(number) for number in range(entry.adapters)]
    model = PeftModel.from_pretrained(base(entry, folder), adapter_directory(folder, entry, 0), adapter_name=names[0])
    for number, name in enumerate(names[1:], 1):
        model.load_adapter(adapter_directory(folder, entry, number), adapter_name=name)
    return _decoding(model, entry, shape, adapter_names=names)


def _decoding(model: Any, entry: Entry, shape: T5Config, **options: Any) -> Call:
    source = torch.from_numpy(tokens(entry, shape)["encoder_input_tokens"]).long()
    settings = GenerationConfig(
        max_new_tokens=entry.target,
        do_sample=False,
        num_beams=entry.beams,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source), "generation_config": settings}
    model.eval()

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model.generate(**inputs, **options)[:, 1:].numpy()  # without the start token

    return call
