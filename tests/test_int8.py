"""Decoding in int8: close to fp32, and the same whatever the batch."""

from dataclasses import replace

import pytest
import torch
from test_transformer import make

from nmt_ls import int8
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.processor import Processor
from nmt_ls.int8 import Int8Decoder, Int8Linear, Int8Output, has_int8, int8_precision, weight_levels

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 0, 0], [11, 3, 12, 2, 0]])
needs_int8 = pytest.mark.skipif(not has_int8(), reason="no int8 instructions here")


def processor_with(*instruction_sets):
    return lambda: Processor(name="made up", identity="made up", instruction_sets=instruction_sets)


@pytest.fixture(params=["as here", "7 bits"])
def levels(request, monkeypatch):
    """The largest integer of a weight: of this processor, and of one with AVX2 alone."""
    if request.param == "7 bits":
        monkeypatch.setattr(int8, "this_processor", processor_with("avx", "avx2"))
    return weight_levels()


def test_how_many_bits_weights_have_goes_by_the_processor(monkeypatch):
    for sets, expected in (
        (("avx2", "avx512_vnni"), 127),
        (("avx2", "avx_vnni"), 127),
        (("amx_int8",), 127),
        (("avx2", "avx512f"), 63),
        (("avx2",), 63),
        (("avx",), None),
    ):
        monkeypatch.setattr(int8, "this_processor", processor_with(*sets))
        assert weight_levels() == expected
        assert has_int8() == (expected is not None)


@needs_int8
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_layer_equals_the_sum_of_its_rounded_factors(rows, levels):
    torch.manual_seed(rows)
    linear = torch.nn.Linear(48, 20)
    x_RD = torch.randn(rows, 48) * torch.logspace(-3, 3, rows)[:, None]
    found_RN = Int8Linear(linear)(x_RD.view(rows, 1, 48))[:, 0]
    weight, x = linear.weight.detach().double(), x_RD.double()
    scales_N1, scales_R1 = (t.abs().amax(1, keepdim=True) / most for t, most in ((weight, levels), (x, 127)))
    exact_RN = ((x / scales_R1).round() * scales_R1) @ ((weight / scales_N1).round() * scales_N1).T + linear.bias
    magnitude_R1 = exact_RN.abs().amax(1, keepdim=True)
    # in fp32 a quotient may fall on the other side of a half: one byte in a row
    assert ((found_RN - exact_RN).abs() <= 0.01 * magnitude_R1).all()
    assert (((found_RN - exact_RN).abs() <= 1e-5 * magnitude_R1).float().mean()) > 0.9
    unrounded_RN = x @ weight.T + linear.bias
    assert ((found_RN - unrounded_RN).norm(dim=1) <= 0.03 * unrounded_RN.norm(dim=1)).all()


@needs_int8
@pytest.mark.usefixtures("levels")
def test_rows_do_not_depend_on_one_another_and_blocks_of_the_output_layer_are_put_together(monkeypatch):
    monkeypatch.setattr(int8, "_OUTPUT_BLOCK", 8)
    torch.manual_seed(0)
    weight_VD, hidden_RD = torch.randn(20, 32), torch.randn(6, 32)
    output = Int8Output(weight_VD)
    together_RV = output(hidden_RD).clone()
    assert torch.equal(together_RV, torch.cat([output(row_1D).clone() for row_1D in hidden_RD.split(1)]))
    torch.testing.assert_close(together_RV, hidden_RD @ weight_VD.T, rtol=0, atol=0.15 * 127 / weight_levels())


@needs_int8
@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_of_all_add_up_exactly(sign):
    # the largest activations are bytes of 255; with weights of 8 bits a pair of their products is beyond 16 bits
    linear = torch.nn.Linear(64, 4)
    torch.nn.init.constant_(linear.weight, 0.5 * sign)
    torch.nn.init.zeros_(linear.bias)
    for x in (3.0, -3.0):
        torch.testing.assert_close(Int8Linear(linear)(torch.full((2, 64), x)), torch.full((2, 4), 32 * x * sign))


@needs_int8
@pytest.mark.usefixtures("levels")
def test_zeros_and_nan_stay_what_they_are():
    linear = torch.nn.Linear(8, 4)
    x_RD = torch.zeros(2, 8)
    x_RD[1, 3] = float("nan")
    found_RN = Int8Linear(linear)(x_RD)
    torch.testing.assert_close(found_RN[0], linear.bias.detach())
    assert found_RN[1].isnan().all()


@needs_int8
@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("layers_from", [64, 65], ids=["layers too", "output layer alone"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoding_is_close_to_fp32_and_leaves_the_model_as_it_was(norm, layers_from, monkeypatch):
    monkeypatch.setattr(int8, "_LAYERS_FROM", layers_from)
    model = make(width=64, norm=norm).float()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    exact, rough = model.start(SOURCE, 2, 3), Int8Decoder(model).start(SOURCE, 2, 3)
    tokens_BK = torch.ones(3, 2, dtype=torch.int64)
    for step in range(3):
        expected_BKV = exact.logits(tokens_BK).clone()
        with torch.autocast("cpu", torch.bfloat16):
            found_BKV = rough.logits(tokens_BK)
        assert found_BKV.dtype == torch.float32
        torch.testing.assert_close(found_BKV, expected_BKV, rtol=0.1, atol=0.1)
        tokens_BK = tokens_BK + torch.tensor([step + 2, step + 3])
        for state in (exact, rough):
            state.reorder(torch.tensor([[1, 0]] * 3))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_a_processor_without_int8_instructions_is_told_so(monkeypatch):
    monkeypatch.setattr(int8, "this_processor", processor_with("avx"))
    with pytest.raises(UserError, match=r"int8 needs a CPU with one of avx512_vnni, .*avx2, not .*; take auto"):
        int8_precision()


def test_signatures_tell_weights_of_7_bits_from_those_of_8(monkeypatch):
    for sets, expected in (("avx2 avx512_vnni", "int8/highest"), ("avx2", "int8/highest, weights of 7 bits")):
        monkeypatch.setattr(int8, "this_processor", processor_with(*sets.split()))
        precision = replace(int8_precision(), matmul="highest")
        assert precision.label() == expected
        assert f"weights of {7 if '7' in expected else 8} bits" in precision.reason
