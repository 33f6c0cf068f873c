"""What transformers' own model tests need to know about this family: small configurations, inputs and labels.

`transformers_model_tests.py` copies this file beside the library's `test_modeling_common.py` and runs it there, once
with the classes of this package and once with the library's, as the environment variable `MODEL_TESTS_SIDE` says.
"""

from __future__ import annotations

import os
import unittest
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.testing_utils import torch_device

import wav2vec2_conformer

from .test_modeling_common import ModelTesterMixin

SIDE = {"ours": wav2vec2_conformer, "theirs": transformers}[os.environ["MODEL_TESTS_SIDE"]]

CONV_KERNEL, CONV_STRIDE = (10, 3, 3), (5, 2, 2)
SAMPLES = (1000, 810, 640)  # real samples of each clip of the batch; the x-vector's context is 15 frames
NEGATIVES = 4


def frames_of(samples: int) -> int:
    """Frames that the feature encoder makes of a clip."""
    for kernel, stride in zip(CONV_KERNEL, CONV_STRIDE, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class ModelTester:
    """Small models and batches; the attributes are those that the library's tests read."""

    is_training = True
    batch_size = len(SAMPLES)
    seq_length = max(SAMPLES)
    encoder_seq_length = frames_of(max(SAMPLES))
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 2
    num_labels = 3
    vocab_size = 12

    def get_config(self) -> Any:
        """A configuration of the side under test."""
        return SIDE.Wav2Vec2ConformerConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=20,
            conv_dim=(8, 8, 8),
            conv_kernel=CONV_KERNEL,
            conv_stride=CONV_STRIDE,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            conv_depthwise_kernel_size=5,
            mask_time_length=2,
            num_codevectors_per_group=6,
            num_codevector_groups=2,
            codevector_dim=8,
            proj_codevector_dim=8,
            num_negatives=NEGATIVES,
            classifier_proj_size=8,
            tdnn_dim=(8, 8, 8, 8, 12),
            xvector_output_dim=8,
            num_labels=self.num_labels,
            layerdrop=0.0,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Tensor]]:
        """A configuration and a right-padded batch."""
        waveforms = torch.randn(self.batch_size, self.seq_length, device=torch_device)
        lengths = torch.tensor(SAMPLES, device=torch_device)
        mask = torch.arange(self.seq_length, device=torch_device) < lengths[:, None]
        return self.get_config(), {"input_values": waveforms * mask, "attention_mask": mask.long()}

    def labels(self, architecture: str) -> dict[str, Tensor]:
        """What makes `forward` compute a loss; the same labels at each call."""
        batch, frames = self.batch_size, self.encoder_seq_length
        draw = partial(torch.randint, generator=torch.Generator().manual_seed(1))
        if architecture == "Wav2Vec2ConformerForPreTraining":
            masked = torch.zeros(batch, frames, dtype=torch.bool)
            masked[:, 3:9] = True
            others = draw(10, frames_of(min(SAMPLES)), (batch, frames, NEGATIVES))
            first = frames * torch.arange(batch)[:, None, None]
            return {"mask_time_indices": masked, "sampled_negative_indices": first + others}
        if architecture == "Wav2Vec2ConformerForAudioFrameClassification":
            ids = draw(self.num_labels, (batch, frames))
            return {"labels": torch.nn.functional.one_hot(ids, self.num_labels)}
        if architecture == "Wav2Vec2ConformerForCTC":
            return {"labels": draw(1, self.vocab_size, (batch, 5))}
        return {"labels": draw(self.num_labels, (batch,))}


class FamilyTests(ModelTesterMixin):
    """The library's tests, with labels for every head; a subclass names the architecture."""

    architecture: str
    test_resize_embeddings = False  # waveforms are embedded by convolutions
    test_model_get_set_embeddings = unittest.skip("no table of embeddings")(
        ModelTesterMixin.test_model_get_set_embeddings
    )
    test_all_params_have_gradient = SIDE is wav2vec2_conformer  # the library's never uses `pos_conv_embed`

    def setUp(self) -> None:
        """Draw the same numbers in every run and on both sides."""
        transformers.set_seed(0)
        self.model_tester = ModelTester()
        self.all_model_classes = (getattr(SIDE, self.architecture),)

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: type, return_labels: bool = False) -> Any:
        prepared = super()._prepare_for_class(inputs, model_class)
        if return_labels and self.architecture != "Wav2Vec2ConformerModel":
            labels = self.model_tester.labels(self.architecture)
            prepared |= {name: value.to(torch_device) for name, value in labels.items()}
        return prepared


class TestModel(FamilyTests, unittest.TestCase):
    architecture = "Wav2Vec2ConformerModel"


class TestCTC(FamilyTests, unittest.TestCase):
    architecture = "Wav2Vec2ConformerForCTC"


class TestSequenceClassification(FamilyTests, unittest.TestCase):
    architecture = "Wav2Vec2ConformerForSequenceClassification"


class TestAudioFrameClassification(FamilyTests, unittest.TestCase):
    architecture = "Wav2Vec2ConformerForAudioFrameClassification"


class TestXVector(FamilyTests, unittest.TestCase):
    architecture = "Wav2Vec2ConformerForXVector"


class TestPreTraining(FamilyTests, unittest.TestCase):
    architecture = "Wav2Vec2ConformerForPreTraining"
