import pytest
import torch

from mini_transformer.runtime import pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("bf16", "amx"), [(False, False), (True, False), (False, True)])
def test_bfloat16_is_for_wide_models_on_cpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert pick_precision("auto", CPU, 128) is (torch.bfloat16 if bf16 or amx else torch.float32)
    assert pick_precision("auto", CPU, 64) is torch.float32
    assert pick_precision("bfloat16", CPU, 64) is torch.bfloat16
    assert pick_precision("float32", CPU, 512) is torch.float32
    assert pick_precision("auto", torch.device("mps"), 512) is torch.float32
