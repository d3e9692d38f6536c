"""Operations of the matrix products in a compiled program, exactly.

On TPUs every product is a convolution, and a product with batch dimensions is one whose windows touch a single valid
place. So the valid places are counted, as XLA's own cost analysis does; element-wise work is left out: it runs on
another unit, beside the products.

>>> product_flops(instruction, (lhs, rhs))    # bf16[8,64] x bf16[64,128]
131072
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

from hyperflax.compile.hlo import Instruction, Shape


def product_flops(instruction: Instruction, operands: Sequence[Shape]) -> int:
    """Returns the operations of a `dot` or a `convolution`, two for a multiplication and its addition."""
    if instruction.opcode == "dot":
        contracted = math.prod(operands[0].dims[axis] for axis in instruction.sizes("lhs_contracting_dims"))
        return 2 * instruction.shapes[0].size * contracted
    left, right, out = re.split(r"_|->", instruction.required("dim_labels"))
    of_left = dict(zip(left, operands[0].dims, strict=True))
    of_right = dict(zip(right, operands[1].dims, strict=True))
    of_out = dict(zip(out, instruction.shapes[0].dims, strict=True))
    window = _window(instruction)
    places = 1
    for number, axis in enumerate(sorted(label for label in left if label.isdigit())):
        one = {name: values[number] for name, values in window.items()}
        places *= _valid_places(of_left[axis], of_out[axis], of_right[axis], **one)
    groups = int(instruction.attribute("feature_group_count") or 1)
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    return 2 * (of_left["b"] // batch_groups) * (of_left["f"] // groups) * of_right["o"] * places


def _window(instruction: Instruction) -> dict[str, list[int]]:
    """Returns stride, lower padding and dilations of every spatial axis."""
    match = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in match[1].split()) if match else {}
    axes = len(fields["size"].split("x")) if fields else 0
    found = {
        name: [int(value) for value in fields[name].split("x")] if name in fields else [1] * axes
        for name in ("stride", "lhs_dilate", "rhs_dilate")
    }
    pads = fields["pad"].split("x") if "pad" in fields else ["0_0"] * axes
    return {**found, "pad": [int(pad.split("_")[0]) for pad in pads]}


@functools.cache
def _valid_places(size: int, out: int, kernel: int, *, stride: int, lhs_dilate: int, rhs_dilate: int, pad: int) -> int:
    """Returns how many (output, kernel) positions of an axis meet an input that is neither padding nor a gap."""
    last = (size - 1) * lhs_dilate
    count = 0
    for position in range(out):
        for offset in range(kernel):
            place = position * stride + offset * rhs_dilate - pad
            count += 0 <= place <= last and place % lhs_dilate == 0
    return count
