"""Which hidden states are returned, and that those are the ones the result is computed from."""

from __future__ import annotations

import pytest
import torch
from test_heads import build
from test_model import SAMPLES, TINY, enlarge, waveforms
from torch import Tensor
from transformers import PreTrainedModel

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

STATES = TINY["num_hidden_layers"] + 1


def network(padding: str = "invariant") -> Wav2Vec2ConformerModel:
    model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**TINY, padding=padding))
    enlarge(model)
    return model.eval()


def assert_selected(found: tuple[Tensor | None, ...], every: tuple[Tensor, ...], kept: set[int]) -> None:
    assert {index for index, state in enumerate(found) if state is not None} == kept
    for index in kept:
        torch.testing.assert_close(found[index], every[index])


@pytest.mark.parametrize(
    ("asked", "kept"), [([0, -1], {0, 3}), ([1], {1}), ((-4, 2, 2), {0, 2}), (3, {3}), (False, None), ([], None)]
)
def test_some_hidden_states(asked: bool | int | list[int], kept: set[int] | None) -> None:
    x, mask = waveforms(SAMPLES, 5000)
    model = network()
    every = model(x, attention_mask=mask, output_hidden_states=True)
    some = model(x, attention_mask=mask, output_hidden_states=asked)
    torch.testing.assert_close(some.last_hidden_state, every.last_hidden_state)
    if kept is None:
        assert some.hidden_states is None
    else:
        assert_selected(some.hidden_states, every.hidden_states, kept)


@pytest.mark.parametrize("weighted", [False, True], ids=["last", "weighted"])
def test_some_hidden_states_of_a_head(weighted: bool) -> None:
    """The mixture of layers reads all states, whichever are returned."""
    x, mask = waveforms(SAMPLES, 5000)
    model = build("sequence", use_weighted_layer_sum=weighted)
    every = model(x, attention_mask=mask, output_hidden_states=True)
    some = model(x, attention_mask=mask, output_hidden_states=[1, -1])
    torch.testing.assert_close(some.logits, every.logits)
    assert_selected(some.hidden_states, every.hidden_states, {1, STATES - 1})


@pytest.mark.parametrize("index", [STATES, -STATES - 1])
def test_hidden_state_that_there_is_not(index: int) -> None:
    with pytest.raises(ValueError, match=rf"indices in \[-4, 4\), got {index}; the model has 4 hidden states"):
        network()(waveforms(SAMPLES)[0], output_hidden_states=[0, index])


@pytest.mark.parametrize("padding", ["invariant", "reference"])
def test_hidden_states_of_a_padded_batch_have_gradients(padding: str) -> None:
    """Each returned state is on the way to the result, so that losses and attributions on it work."""
    x, mask = waveforms(SAMPLES, 5000)
    output = network(padding)(x, attention_mask=mask, output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    output.last_hidden_state.square().sum().backward()
    assert len(output.hidden_states) == STATES
    for state in output.hidden_states:
        assert state.grad is not None
        assert state.grad.abs().sum() > 0


def test_unused_weights_of_a_model_from_the_meta_device() -> None:
    """`to_empty` allocates them without values: they are written as in a new model, and are no buffers."""
    with torch.device("meta"):
        model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**TINY))
    model.to_empty(device="cpu")
    model.init_weights()
    assert [name for name, _ in model.named_buffers() if "pos_conv_embed" in name] == []
    expected = {name: tensor for name, tensor in network().state_dict().items() if "pos_conv_embed" in name}
    assert len(expected) == 3
    state = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)


@pytest.mark.skipif(not hasattr(PreTrainedModel, "activation_checkpointing_enable"), reason="an older transformers")
def test_checkpointing_of_every_second_block() -> None:
    model = network().train()
    model.activation_checkpointing_enable(every_n_layers=2)
    assert [block.gradient_checkpointing for block in model.encoder.layers] == [True, False, True]
