"""The choice of arithmetic: the rule on invented processors, the measurement on this one, and its cache."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nmt_ls.experiment import precision
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.precision import Measured, Precision, choose_precision, decide, measure
from nmt_ls.experiment.processor import from_cpuinfo, this_processor


def rates(
    medium: float = 100.0, bf16: float | None = None, medium_error: float = 2e-7, highest_error: float = 2e-7
) -> Measured:
    return Measured(
        highest_rate=100.0,
        medium_rate=medium,
        bf16_rate=bf16,
        highest_error=highest_error,
        medium_error=medium_error,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nmt_ls" / "precision"


@pytest.mark.parametrize(
    ("measured", "kind", "matmul"),
    [
        (rates(), "fp32", "highest"),
        (rates(medium=220.0), "fp32", "medium"),
        (rates(medium=110.0), "fp32", "highest"),  # faster, but not worth a switch
        (rates(medium=400.0, medium_error=2e-3), "fp32", "highest"),  # the switch computes in bf16 (AMX)
        (rates(medium=220.0, medium_error=9e-7), "fp32", "highest"),  # 4.5 times the default's error
        (rates(medium=220.0, medium_error=2e-5, highest_error=1e-5), "fp32", "highest"),  # above the absolute limit
        (rates(bf16=200.0), "bf16", "highest"),
        (rates(bf16=120.0), "fp32", "highest"),
        (rates(medium=220.0, bf16=470.0), "bf16", "medium"),
        (rates(medium=220.0, bf16=250.0), "fp32", "medium"),  # bf16 has to beat the best fp32
        (rates(medium=400.0, medium_error=2e-3, bf16=400.0), "bf16", "highest"),
    ],
)
def test_auto_takes_what_pays(measured: Measured, kind: str, matmul: str) -> None:
    chosen = decide("auto", measured, bf16_by="amx_bf16", name="a processor")
    assert (chosen.kind, chosen.matmul) == (kind, matmul)


@pytest.mark.parametrize("measured", [rates(bf16=900.0), rates(bf16=10.0), rates(medium=220.0), None])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(kind: str, measured: Measured | None) -> None:
    chosen = decide(kind, measured, bf16_by=None, name="a processor")
    assert chosen.kind == kind
    assert chosen.reason.startswith(f"{kind}, as asked, on a processor")


def test_the_reason_is_a_sentence_with_the_figures() -> None:
    chosen = decide("auto", rates(medium=220.0, bf16=470.0, medium_error=4e-7), bf16_by="amx_bf16", name="X")
    assert chosen.reason == (
        "bf16, as X (amx_bf16) multiplies 2.1 times as fast in bf16 (470 GFLOP/s); fp32 products at 220 GFLOP/s by the "
        "medium kernels, 2.2 times the default's rate at relative error 4e-07"
    )
    assert chosen.measured["bf16_rate"] == 470.0
    unsupported = decide("auto", rates(), bf16_by=None, name="X")
    assert (
        unsupported.reason == "fp32, as X has no bf16 instructions; fp32 products at 100 GFLOP/s by the default kernels"
    )
    inaccurate = decide("fp32", rates(medium=400.0, medium_error=2e-3), bf16_by=None, name="X")
    assert "(the medium ones are faster, but err by 2e-03)" in inaccurate.reason


def test_measuring_leaves_no_trace() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    with torch.no_grad():
        measured = measure(torch.device("cpu"), with_bf16=False)
        assert not torch.is_grad_enabled()
    after = torch.get_rng_state(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert measured.bf16_rate is None
    assert 1e-8 < measured.highest_error < 1e-5
    assert min(measured.highest_rate, measured.medium_rate) > 0.1


def test_fp32_stays_as_accurate_as_fp32() -> None:
    """Whatever the switch does on the processor of these tests, what is chosen keeps fp32's accuracy."""
    chosen = choose_precision("fp32")
    before = torch.get_float32_matmul_precision()
    random = torch.Generator().manual_seed(1)
    a, b = (torch.randn(700, 700, generator=random) for _ in range(2))
    try:
        chosen.apply()
        assert torch.get_float32_matmul_precision() == chosen.matmul
        with chosen.autocast():
            product = a @ b
    finally:
        torch.set_float32_matmul_precision(before)
    exact = a.double() @ b.double()
    assert float((product.double() - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize(("matmul", "tf32"), [("highest", False), ("medium", True)])
def test_convolutions_on_a_gpu_are_as_accurate_as_products(matmul: Any, tf32: bool) -> None:
    """cuDNN's are in TF32 unless told otherwise."""
    torch.backends.cudnn.allow_tf32 = not tf32
    Precision(matmul=matmul).apply()
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_autocast_computes_in_bf16_and_only_then() -> None:
    a = torch.randn(4, 4)
    with Precision(kind="bf16").autocast("cpu"):
        assert (a @ a).dtype is torch.bfloat16
    with Precision().autocast("cpu"):
        assert (a @ a).dtype is torch.float32


def test_manifest_round_trip() -> None:
    chosen = choose_precision()
    assert Precision.from_manifest(json.loads(json.dumps(chosen.to_dict()))) == chosen
    for damaged in ({"kind": "fp32"}, {**chosen.to_dict(), "kind": "fp8"}):
        with pytest.raises(UserError, match="the manifest's precision entry is damaged"):
            Precision.from_manifest(damaged)


def test_measured_once_per_processor_version_and_threads(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.device] = []

    def count(device: torch.device, *, with_bf16: bool) -> Measured:
        calls.append(device)
        return rates(medium=50.0, bf16=300.0 if with_bf16 else None)

    monkeypatch.setattr(precision, "measure", count)
    first = choose_precision()
    assert choose_precision() == first
    assert choose_precision("fp32").measured == first.measured
    (file,) = cache.iterdir()
    assert len(calls) == 1
    for damage in (
        "",
        "{",
        "[]",
        '{"machine": {}}',
        re.sub(r'"highest_rate": [\d.]+', '"highest_rate": NaN', file.read_text()),
    ):
        file.write_text(damage)
        assert choose_precision() == first
    assert len(calls) == 6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    choose_precision()
    monkeypatch.setattr(torch, "__version__", "9.9")
    choose_precision()
    assert len(calls) == 8
    assert len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(precision, "measure", lambda *_, **__: rates())
    assert choose_precision("fp32").kind == "fp32"


def test_bf16_without_instructions_is_allowed_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bf16(*_: Any, with_bf16: bool) -> Measured:
        assert not with_bf16  # emulated, it could take seconds
        return rates()

    monkeypatch.setattr(precision, "measure", no_bf16)
    monkeypatch.setattr(precision, "this_processor", lambda: from_cpuinfo("model name : Old\nflags : avx2\n"))
    with pytest.warns(UserWarning, match="has no bf16 instructions: bf16 will be slow"):
        assert choose_precision("bf16").kind == "bf16"
    assert choose_precision("auto").kind == "fp32"


def test_unknown_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="precision must be auto, fp32 or bf16, not 'fp8'"):
        choose_precision("fp8")
    with pytest.raises(ValueError, match="kind must be"):
        Precision(kind="fp8")  # type: ignore[arg-type]


def test_processors_are_told_apart() -> None:
    text = (
        "processor\t: 0\nvendor_id\t: A\ncpu family\t: {}\nmodel\t\t: 2\nmodel name\t: EPYC\nflags\t\t: sse avx2 {}\n\n"
    )
    zen5, zen2 = from_cpuinfo(text.format(26, "avx512f avx512_bf16") * 2), from_cpuinfo(text.format(23, ""))
    assert (zen5.name, zen5.instruction_sets, zen5.bf16_set) == (
        "EPYC",
        ("avx2", "avx512f", "avx512_bf16"),
        "avx512_bf16",
    )
    assert (zen2.name, zen2.instruction_sets, zen2.bf16_set) == ("EPYC", ("avx2",), None)
    assert zen5.identity != zen2.identity
    arm = from_cpuinfo("processor : 0\nFeatures : fp asimd bf16\nCPU part : 0xd40\n")
    assert (arm.instruction_sets, arm.bf16_set) == (("asimd", "bf16"), "bf16")
    assert from_cpuinfo("flags : avx512_bf16 amx_bf16").bf16_set == "amx_bf16"
    assert from_cpuinfo("").name
    assert this_processor().name
