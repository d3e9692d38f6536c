"""The cases: every comparison that `python -m benchmarks.peers` makes.

>>> CASES["train_lora"].entries["transformers"]
Entry(side='transformers', program='train_lora', rows=8, source=256, target=64, ...)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.case import Case, Entry, Ratio, Side


def _on(entry: Entry, *sides: Side) -> dict[str, Entry]:
    return {side: entry.on(side) for side in ("hyperflax", *sides)}


def _faster(least: Mapping[Side, float | None]) -> tuple[Ratio, ...]:
    return tuple(
        Ratio(f"hyperflax is faster than {side}", side, "hyperflax", least=value) for side, value in least.items()
    )


def _train(program: str, says: str, least: Mapping[Side, float | None], adapter: str = "") -> Case:
    entry = Entry("hyperflax", program, adapter=adapter, adapters=int(bool(adapter)))
    share = Ratio("hyperflax's share of the matmul rate", "matmul", "hyperflax", rates=True)
    entries = {
        **_on(entry, *least),
        "matmul": Entry("hyperflax", "matmul"),
        "torch_matmul": Entry("transformers", "matmul"),
    }
    return Case(says, entries, (*_faster(least), share))


def _decode(says: str, least: Mapping[Side, float | None], rounds: int = 5, **settings: Any) -> Case:
    return Case(says, _on(Entry("hyperflax", "decode", **settings), *least), _faster(least), rounds=rounds)


def _mixed() -> Case:
    """64 rows, each with an adapter of its own, beside the bare model."""
    sizes: dict[str, Any] = {"rows": 64, "source": 64, "target": 32}
    bare = Entry("hyperflax", "decode", **sizes)
    lora8 = Entry("hyperflax", "decode_mixed", adapter="lora8", adapters=64, **sizes)
    names = {"lora16_all": "rank 16 on all projections", "prefix16": "16 prefix positions"}
    others = {name: dataclasses.replace(lora8, adapter=name) for name in names}
    entries = {
        "bare": bare,
        "lora8": lora8,
        **others,
        "switching": dataclasses.replace(lora8, adapters=1000),
        "transformers_bare": bare.on("transformers"),
        "transformers_lora8": lora8.on("transformers"),
    }
    share = "share of the bare model's throughput"
    return Case(
        "Greedy decoding of 64 rows, each with an adapter of its own",
        entries,
        (
            Ratio(f"rank 8 on queries and values, {share}", "bare", "lora8", least=0.9),
            *(Ratio(f"{says}, {share}", "bare", name) for name, says in names.items()),
            Ratio(f"rank 8, the next 64 of 1,000 in every call, {share}", "bare", "switching"),
            Ratio(f"transformers and PEFT, rank 8, {share}", "transformers_bare", "transformers_lora8"),
            Ratio("hyperflax is faster than transformers and PEFT, rank 8", "transformers_lora8", "lora8"),
        ),
    )


def _switching() -> Case:
    """The next 64 of 1,000 adapters in every call: all on the device, or 256 of them."""
    bare = Entry("hyperflax", "decode", rows=64, source=64, target=32)
    some = dataclasses.replace(bare, program="decode_mixed", adapter="lora8", adapters=1000)
    says = {"resident": "all of them on the device", "switching": "256 of them on the device"}
    return Case(
        "Greedy decoding of 64 rows, each with the next of 1,000 rank-8 adapters",
        {"bare": bare, "resident": dataclasses.replace(some, program="decode_resident"), "switching": some},
        tuple(Ratio(f"{told}, share of the bare model's throughput", "bare", name) for name, told in says.items()),
    )


def _adapters() -> Case:
    """1 to 1,000 adapters in a batch."""
    entries, bare, lora = {}, {}, {}
    for count in (1, 10, 100, 1000):
        entry = Entry("hyperflax", "decode", rows=count, source=16, target=8)
        bare[count], lora[count] = f"bare_{count}", f"lora8_{count}"
        entries[bare[count]] = entry
        entries[lora[count]] = dataclasses.replace(entry, program="decode_mixed", adapter="lora8", adapters=count)
    return Case(
        "Adapters in a batch: as many rows, each with an adapter of its own",
        entries,
        tuple(Ratio(f"{n:,} adapters, share of the bare model's throughput", bare[n], lora[n]) for n in bare),
        x="rows and adapters",
        curves={"bare": bare, "a rank-8 LoRA in every row": lora},
        rounds=3,
    )


def _generation() -> Case:
    """An adapter from a support, beside the plain forward pass of the hypernetwork's T5."""
    entries, generate, forward = {}, {}, {}
    for support in (64, 256, 1024, 2048):
        entry = Entry("hyperflax", "generate", rows=1, adapter="lora8", support=support)
        generate[support], forward[support] = f"generate_{support}", f"forward_{support}"
        entries[generate[support]] = entry
        entries[forward[support]] = dataclasses.replace(entry, program="forward")
    return Case(
        "Generating an adapter: a HyperT5 of the base's size, rank 8 on queries and values",
        entries,
        tuple(
            Ratio(f"{n:,} support tokens: generating over the plain forward pass", generate[n], forward[n], most=1.3)
            for n in generate
        ),
        x="tokens of the support",
        curves={"generating": generate, "plain encoder and decoder": forward},
    )


def _answer() -> Case:
    """Adapting and answering, beside answering with the examples in every input."""
    entries, adapted, context = {}, {}, {}
    for inputs in (1, 2, 4, 20, 100):
        entry = Entry("hyperflax", "adapt_and_answer", rows=inputs, source=32, target=8, adapter="lora8", support=1024)
        adapted[inputs], context[inputs] = f"adapted_{inputs}", f"in_context_{inputs}"
        entries[adapted[inputs]] = entry
        entries[context[inputs]] = dataclasses.replace(entry, program="answer_in_context", adapter="")
    return Case(
        "Adapting to 16 shots in 1,024 tokens and answering, beside the same shots in every input",
        entries,
        tuple(
            Ratio(f"{n} inputs: adapting is faster", context[n], adapted[n], least=5.0 if n == 100 else None)
            for n in adapted
        ),
        x="inputs",
        curves={"adapted": adapted, "in context": context},
        crossing=("in context", "adapted"),
        rounds=3,
    )


def _growth(says: str, x: str, field: str, values: tuple[int, ...], entry: Entry) -> Case:
    """Both hyperflax and transformers along one size."""
    entries, curves = {}, {}
    sides: tuple[Side, ...] = ("hyperflax", "transformers")
    for side in sides:
        curves[side] = {n: f"{side}_{n}" for n in values}
        for n in values:
            size: dict[str, Any] = {field: n}
            entries[curves[side][n]] = dataclasses.replace(entry.on(side), **size)
    ratios = tuple(
        Ratio(f"{x} {n}: hyperflax is faster than transformers", f"transformers_{n}", f"hyperflax_{n}") for n in values
    )
    return Case(says, entries, ratios, x=x, curves=curves, rounds=3)


def _start() -> Case:
    """Fresh processes."""
    commands = {
        "python": "python, doing nothing",
        "import": "`import hyperflax`",
        "help": "`hyperflax --help`",
        "predict_cold": "`hyperflax predict`, 77 M parameters, the first row, nothing compiled before",
        "predict_warm": "`hyperflax predict`, the same with its compilation cached",
    }
    return Case(
        "Fresh processes, from start to end",
        {says: Entry("hyperflax", "start", command=name) for name, says in commands.items()},
        most_seconds={commands["predict_cold"]: 6.0, commands["predict_warm"]: 3.0},
    )


_PEFT: dict[Side, float | None] = {"transformers": None}

CASES: dict[str, Case] = {
    "train_full": _train(
        "train_full",
        "Training step of all parameters with Adafactor: 8 rows, 256 and 64 tokens",
        {"transformers": 1.0, "t5x_gather": 1.05, "t5x": 1.2},
    ),
    "train_lora": _train(
        "train_lora",
        "Training step of a rank-8 LoRA on queries and values with AdamW: 8 rows, 256 and 64 tokens",
        {"transformers": 1.5},
        adapter="lora8",
    ),
    "decode_greedy": _decode(
        "Greedy decoding: 8 rows, 256 tokens in, 64 out", {"transformers": 2.0, "t5x_gather": 2.0, "t5x": 2.0}
    ),
    "decode_beam": _decode(
        "Beam search, 4 beams: 8 rows, 256 tokens in, 64 out",
        {"transformers": 2.0, "t5x_gather": 2.0, "t5x": 2.0},
        rounds=3,
        beams=4,
    ),
    "decode_lora": _decode(
        "Greedy decoding with one rank-8 LoRA: 8 rows, 256 tokens in, 64 out", _PEFT, adapter="lora8", adapters=1
    ),
    "decode_prefix": _decode(
        "Greedy decoding with a prefix of 16 in the decoder's self-attention: 8 rows, 256 tokens in, 64 out",
        _PEFT,
        adapter="decoder_prefix16",
        adapters=1,
    ),
    "decode_mixed": _mixed(),
    "decode_switching": _switching(),
    "generation": _generation(),
    "answer": _answer(),
    "start": _start(),
    "growth_adapters": _adapters(),
    "growth_batch": _growth(
        "Batch: greedy decoding, 64 tokens in, 32 out",
        "rows",
        "rows",
        (1, 4, 16, 64),
        Entry("hyperflax", "decode", source=64, target=32),
    ),
    "growth_depth": _growth(
        "Depth: training step of a rank-8 LoRA, 8 rows, 128 and 32 tokens",
        "layers of each stack",
        "layers",
        (2, 4, 8, 16),
        Entry("hyperflax", "train_lora", source=128, target=32, adapter="lora8", adapters=1),
    ),
}
