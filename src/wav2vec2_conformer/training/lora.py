"""Low-rank adapters (LoRA, Hu et al. 2021) in the network's attention, through the library `peft`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["add_lora", "merged_state"]

TARGETS = ["linear_q", "linear_k", "linear_v", "linear_out"]


def add_lora(model: Any, rank: int) -> None:
    """Add adapters to the attention's projections, in place; they and what is above the network are left to learn.

    Raises:
        ValueError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            "`lora` needs the library peft; install it with `pip install 'wav2vec2-conformer[lora]'`"
        ) from error
    own = [
        p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(model.base_model_prefix)
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), model)
    for parameter in own:  # the library froze them with the rest
        parameter.requires_grad_(True)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of one without: each adapter added to the weight it adapts."""
    from peft.tuners.lora import Linear

    state = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}
