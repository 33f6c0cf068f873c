"""The feature encoder in blocks of frames, as inference runs it, against the whole clip at once, as training does."""

from __future__ import annotations

import pytest
import torch

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import feature_lengths
from wav2vec2_conformer.modeling.feature_encoder import BLOCK, FeatureEncoder, Moments

SAMPLES = torch.tensor([3 * BLOCK * 320 + 700, BLOCK * 320 + 321, 900])  # of clips; the shortest ends within a block


def encoder(norm: str) -> FeatureEncoder:
    torch.manual_seed(0)
    return FeatureEncoder(Wav2Vec2ConformerConfig(feat_extract_norm=norm, conv_dim=[32] * 7)).eval()


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_blocks_are_the_whole(norm: str) -> None:
    """To rounding, in clips whose mean is far from 0, whatever stands in their padding."""
    model = encoder(norm)
    clips = torch.randn(3, int(SAMPLES[0])) + 30
    if norm == "group":  # with layer norm, a padded frame is no other one's business
        for clip, samples in zip(clips, SAMPLES.tolist(), strict=True):
            clip[samples:] = torch.inf
    with torch.no_grad():
        blocks = model(clips, SAMPLES)
    whole = model(clips, SAMPLES).detach()
    assert blocks.shape == whole.shape
    for block, one, samples in zip(blocks, whole, SAMPLES.tolist(), strict=True):
        frames = feature_lengths(samples, model.layers)
        assert frames > 0
        torch.testing.assert_close(block[:frames], one[:frames], rtol=1e-4, atol=1e-5 * float(one[:frames].abs().max()))


def test_moments_of_stretches_join_to_those_of_the_clip() -> None:
    x = torch.randn(2, 1000, 5, dtype=torch.float64) * 3 + 100
    mask = torch.arange(1000) < torch.tensor([[1000], [123]])
    joined = Moments.of(x[:, :200], mask[:, :200])
    for first in range(200, 1000, 200):  # of the second clip, all but the first stretch are padding
        joined = joined.joined(Moments.of(x[:, first : first + 200], mask[:, first : first + 200]))
    for index, frames in enumerate((1000, 123)):
        variance, mean = torch.var_mean(x[index, :frames], dim=0, correction=0)
        torch.testing.assert_close(joined.mean[index, 0], mean)
        torch.testing.assert_close(joined.variance[index, 0], variance)
