"""Speaker embeddings: a time-delay network, statistics pooling and AM-softmax (x-vectors, Snyder et al. 2018)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import XVectorOutput

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import Length, frame_mask, frames_of, reference_tdnn_mask, tdnn_context, tdnn_lengths
from .layer_mixture import LayerMixtureModel
from .losses import am_softmax_loss, class_ids
from .model import choose
from .outputs import StateSelection

# B batch, N samples, T frames, D hidden size, C channels, K kernel, X width of the embedding

__all__ = ["Wav2Vec2ConformerForXVector", "statistics_pooling"]


class TDNNLayer(nn.Module):
    """Dilated convolution -> ReLU, with the kernel as a linear layer over K frames side by side."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.size, self.dilation = kernel, dilation
        self.kernel = nn.Linear(inputs * kernel, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T - dilation * (K - 1), C')."""
        if self.size > 1:
            windows = x.unfold(1, self.dilation * (self.size - 1) + 1, 1)[..., :: self.dilation]  # (B, T', C, K) view
            x = windows.transpose(2, 3).flatten(2)  # (B, T', K * C)
        # Called as a module, not through its weight, so that LoRA and quantization of it take effect.
        return F.relu(self.kernel(x))


class AMSoftmax(nn.Module):
    """The class directions that AM-softmax compares with."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, classes))
        self.margin = 0.4

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B, X) vectors and (B,) class ids -> () loss."""
        return am_softmax_loss(x, self.weight, labels, margin=self.margin)


class Wav2Vec2ConformerForXVector(LayerMixtureModel):
    """Wav2Vec2-Conformer with an x-vector head, for speaker verification.

    `padding="reference"` pools as many frames as transformers 4.34.0, whose lengths forget the dilation.

    Args:
        config: with `tdnn_dim`, `tdnn_kernel`, `tdnn_dilation`, `xvector_output_dim`, `num_labels` (speakers to train
            with) and `use_weighted_layer_sum`. Under `add_adapter` the head reads the adapter's frames, except that a
            mixture of layers is one of the encoder's: then the adapter has no effect, and a warning says so.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        if config.add_adapter and config.use_weighted_layer_sum:
            warnings.warn(
                "`add_adapter=True` has no effect on x-vectors under `use_weighted_layer_sum=True`, which mixes the "
                "encoder's hidden states; turn one of the two off",
                stacklevel=2,
            )
        elif config.add_adapter:
            width = config.output_hidden_size or width
        widths = list(config.tdnn_dim)
        layers = zip([widths[0], *widths[:-1]], widths, config.tdnn_kernel, config.tdnn_dilation, strict=True)
        self.projector = nn.Linear(width, widths[0])
        self.tdnn = nn.ModuleList(TDNNLayer(*sizes) for sizes in layers)
        self.feature_extractor = nn.Linear(2 * widths[-1], config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmax(config.xvector_output_dim, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: StateSelection | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> XVectorOutput | tuple[Any, ...]:
        """Compute one embedding a clip, and the AM-softmax loss where labels are given.

        Args:
            input_values: (B, N) samples.
            attention_mask: (B, N), 1 = real sample, right padding.
            output_attentions: as in `Wav2Vec2ConformerModel`.
            output_hidden_states: as in `Wav2Vec2ConformerModel`.
            return_dict: `False`: a plain tuple.
            labels: (B,) speakers in [0, num_labels); a clip labelled -100 has no share in the loss.

        Returns:
            `loss` (), the mean over the labelled clips, where labels are given, `logits` (B, X) that the loss compares
            with its class directions, `embeddings` (B, X), `hidden_states`, `attentions`. A clip shorter than the
            TDNN's context gives what it gives followed by zeros up to one context; one without a frame pools a zero
            vector.

        Raises:
            ValueError: labels that are no class ids, one a clip.
        """
        encoded = self._encode(input_values, attention_mask, output_attentions, output_hidden_states)
        x = self.projector(encoded.features)  # (B, T, C)
        x, valid = self._fill_context(x, attention_mask)  # (B, T, C) with T >= context, (B, T')
        for layer in self.tdnn:
            x = layer(x)  # (B, T', C)
        pooled = statistics_pooling(x, valid)  # (B, 2 C)
        embeddings = self.feature_extractor(pooled)  # (B, X)
        logits = self.classifier(embeddings)  # (B, X)
        loss = None
        if labels is not None:
            loss = self.objective(logits, class_ids(labels, logits.shape[:1], self.num_labels))
        output = XVectorOutput(
            loss=loss,
            logits=logits,
            embeddings=embeddings,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if choose(return_dict, self.config.return_dict) else output.to_tuple()

    def _fill_context(self, x: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The TDNN's input, at least one context long, and the (B, T') mask of the outputs to pool."""
        config = self.config
        frames, context = x.shape[1], tdnn_context(config)
        outputs = max(frames, context) - context + 1
        filled = F.pad(x, (0, 0, 0, max(context - frames, 0)))
        if attention_mask is None:
            return filled, torch.full((x.shape[0], outputs), frames > 0, device=x.device)
        samples = attention_mask.sum(-1)
        if config.padding == "reference":
            return filled, reference_tdnn_mask(samples, config, outputs)
        # A mixture of layers is one of the encoder's, before the adapter.
        lengths = frames_of(samples, config, add_adapter=config.add_adapter and not config.use_weighted_layer_sum)
        filled = filled.masked_fill(~frame_mask(lengths, filled.shape[1]).unsqueeze(-1), 0)
        return filled, frame_mask(tdnn_lengths(lengths, config), outputs)

    def _get_tdnn_output_lengths(self, input_lengths: Length) -> Length:
        """Frames that are pooled of clips of `input_lengths` frames (an int or an integer tensor)."""
        return tdnn_lengths(input_lengths, self.config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AMSoftmax):
            init.normal_(module.weight)


def statistics_pooling(x: Tensor, valid: Tensor) -> Tensor:
    """Mean and unbiased standard deviation (B, 2 C) of the frames of (B, T, C) where `valid` (B, T) is True.

    The mean of no frame and the deviation of fewer than two are 0, with a gradient of 0. Computed in at least float32.
    """
    wide, inside = x.to(torch.promote_types(x.dtype, torch.float32)), valid.unsqueeze(-1)
    count = inside.sum(1)  # (B, 1)
    mean = wide.masked_fill(~inside, 0).sum(1) / count.clamp(min=1)  # (B, C)
    squares = (wide - mean.unsqueeze(1)).masked_fill(~inside, 0).square().sum(1)
    variance = squares / (count - 1).clamp(min=1)
    varies = variance > 0  # the root's slope at 0 is infinite
    deviation = torch.where(varies, torch.where(varies, variance, 1).sqrt(), 0)
    return torch.cat((mean, deviation), dim=-1).to(x.dtype)
