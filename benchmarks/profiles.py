"""Where the time of a step goes, by kinds of operation (PyTorch's profiler)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

KINDS = (
    ("matrix products", ("mm", "addmm", "addmm_", "bmm", "baddbmm", "onednn::qlinear_pointwise")),
    ("optimiser", ("_fused_adam_", "_foreach_mul_", "_foreach_norm", "linalg_vector_norm")),
    ("exponentials", ("_softmax", "_softmax_backward_data", "_log_softmax", "logsumexp", "exp", "exp_", "exp2_")),
    ("layer norm", ("native_layer_norm", "native_layer_norm_backward")),
    ("embedding", ("embedding", "index_select", "embedding_dense_backward", "index_add_", "index_put_", "gather")),
    ("maxima and sorting", ("amax", "max", "maximum", "topk", "sort")),
    ("random numbers", ("random_",)),
    ("copies and casts", ("copy_", "cat", "clone", "fill_", "zero_", "masked_fill_", "index")),
    (
        "element by element",
        (
            "add",
            "add_",
            "addcmul_",
            "mul",
            "mul_",
            "div",
            "lt_",
            "clamp_min",
            "threshold_backward",
            "sub",
            "sub_",
            "sum",
            "addcmul",
            "div_",
            "abs",
            "round_",
            "clamp_",
            "bitwise_xor_",
        ),
    ),
)
"""Operations that do the work; what only calls them, makes views or allocates is the rest."""
PROFILE_COLUMNS = {"kind": "", "ms": ".2f", "%": ".1f"}


def take_apart(run: Callable[[], object], steps: int) -> list[dict[str, Any]]:
    """Milliseconds of one of the `steps` that a run makes, by kind of operation: what each spends itself.

    Calls alike (operation and shapes) count by the first quartile of their times: on a machine that others use, the
    longer ones were interrupted.
    """
    run()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    alike: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profiler.events():
        alike[event.name.removeprefix("aten::"), str(event.input_shapes)].append(event.self_cpu_time_total)
    spent = dict.fromkeys([kind for kind, _ in KINDS] + ["the rest"], 0.0)
    for (name, _), times in alike.items():
        kind = next((kind for kind, names in KINDS if name in names), "the rest")
        spent[kind] += sorted(times)[len(times) // 4] * len(times) / 1e3 / steps
    total = sum(spent.values())
    return [{"kind": kind, "ms": ms, "%": 100 * ms / total} for kind, ms in spent.items() if ms > 0]
