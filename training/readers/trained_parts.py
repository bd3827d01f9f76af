"""What of a model is trained: the settings of its LoRA, and how fast each parameter learns.

Decoders and encoders say which of their modules are adapted and which are their head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from strata.training.config import TrainConfig
from strata.training.types import ParameterGroup

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_settings(
    config: TrainConfig, targets: Sequence[str], head: Sequence[str] | None, task_type: str | None = None
) -> LoraConfig:
    """LoRA as the run asks for it, in PEFT's terms.

    Args:
        config: the run's settings.
        targets: names of the linear modules to adapt.
        head: names of the modules that are trained whole and saved with the adapter; None for none.
        task_type: what PEFT calls the kind of model, where its loader should know.
    """
    from peft import LoraConfig

    return LoraConfig(
        task_type=task_type,
        r=config.lora_r,
        # PEFT declares an int and computes with any number.
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=list(targets),
        modules_to_save=None if head is None else list(head),
    )


def group_parameters(
    module: nn.Module, is_head: Callable[[str], bool], head_lr_scale: float
) -> list[ParameterGroup]:
    """The trained parameters of a module: those of its head learn at a rate apart.

    Args:
        module: whose parameters with `requires_grad` are trained.
        is_head: whether a parameter's name is one of the head's.
        head_lr_scale: learning rate of the head, as a multiple of the others'.

    Returns:
        One or two groups, none of them empty.
    """
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    head = {name: weight for name, weight in trained.items() if is_head(name)}
    body = {name: weight for name, weight in trained.items() if name not in head}
    groups = (
        ParameterGroup(parameters=body, scale=1.0),
        ParameterGroup(parameters=head, scale=head_lr_scale),
    )
    return [group for group in groups if group.parameters]


def target_modules(config: TrainConfig, base: Any) -> list[str]:
    """Names of the linear modules to adapt. `all-linear` takes all of the decoder layers, routers apart.

    PEFT's all-linear also adapts fused experts, as parameters, which no `strata score` could apply.
    """
    if config.lora_targets != ("all-linear",):
        return list(config.lora_targets)
    layers = base.get_submodule(base.base_model_prefix).get_submodule("layers")
    linears = {
        name.rpartition(".")[2]
        for name, module in layers.named_modules()
        if type(module) is nn.Linear or type(module).__name__ == "Linear4bit"
    }
    return sorted(linears - {"gate", "router"})
