# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"
"""The softmax of the fused loss as one Triton kernel, for CUDA, with whose PyTorch Triton comes (imported only there).

Not run on hardware: only in Triton's interpreter, on a CPU (tests/test_losses_triton.py).

Shapes: n rows of logits over V classes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LARGEST_BLOCK = 8192
"""Classes that a program holds at a time."""


def softmax_gradient_in_place(
    logits_nV: Tensor, labels_n: Tensor, label_mass_n: Tensor, with_gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """lse and the labels' logits, in float32; the logits become probabilities less `label_mass` on the label.

    Reads the logits twice and writes them once (reads them once where no gradient is wanted, and leaves them alone),
    in their own dtype, float32 or narrower, with every sum in float32. Rows are contiguous.
    """
    rows, classes = logits_nV.shape
    assert logits_nV.stride(1) == 1
    lse_n, label_logits_n = torch.empty(2, rows, dtype=torch.float32, device=logits_nV.device)
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(classes))
    _softmax_gradient[(rows,)](
        logits_nV,
        logits_nV.stride(0),
        labels_n,
        label_mass_n,
        lse_n,
        label_logits_n,
        classes,
        WITH_GRADIENT=with_gradient,
        BLOCK=block,
        num_warps=max(4, min(16, block // 512)),
    )
    return lse_n, label_logits_n


@triton.jit
def _softmax_gradient(
    logits,
    row_stride,
    labels,
    label_mass,
    lse_out,
    label_logits_out,
    classes,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: the peak and the sum of exponentials in one pass, probabilities in a second."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    label = tl.load(labels + row)
    tl.store(label_logits_out + row, tl.load(logits + label).to(tl.float32))
    peak = float("-inf")
    total = 0.0
    for begin in range(0, classes, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        values = tl.load(logits + columns, mask=columns < classes, other=float("-inf")).to(tl.float32)
        new_peak = tl.maximum(peak, tl.max(values, 0))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(values - new_peak), 0)
        peak = new_peak
    lse = peak + tl.log(total)
    tl.store(lse_out + row, lse)
    if WITH_GRADIENT:
        mass = tl.load(label_mass + row)
        for begin in range(0, classes, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            inside = columns < classes
            values = tl.load(logits + columns, mask=inside, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(values - lse) - tl.where(columns == label, mass, 0.0)
            tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=inside)
