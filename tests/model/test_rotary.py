import torch

from mini_transformer.config import ModelConfig
from mini_transformer.model.rotary import rotary_table, rotate


def test_rotation_keeps_lengths_and_depends_on_distance_only(tiny_config: ModelConfig) -> None:
    cos, sin = rotary_table(tiny_config.rope, 8, 16)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 16, 8)
    turned_q, turned_k = rotate(q, cos, sin), rotate(k, cos, sin)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    scores = (turned_q @ turned_k.mT)[0, 0]
    for distance in range(16):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
