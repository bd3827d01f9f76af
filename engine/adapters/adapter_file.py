"""Reads and checks an adapter folder written by PEFT, without peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from strata.engine.adapters.adapter_config import (
    WEIGHTS_NAME,
    AdapterConfig,
    TensorRole,
    parse_tensor_name,
    read_adapter_config,
)
from strata.engine.adapters.labels import LABELS_NAME, read_labels
from strata.engine.adapters.lora import Adapter, LoraWeights
from strata.engine.model_files.library_errors import one_line
from strata.engine.types import InputError


def read_adapter(path: Path, *, hidden_size: int, num_layers: int, num_kept: int | None = None) -> Adapter:
    """Reads and validates an adapter folder written by PEFT.

    Args:
        path: folder with adapter_config.json and adapter_model.safetensors.
        hidden_size: D of the model; a score head is [labels, D], or [1, 2 D] for --head contrast.
        num_layers: decoder layers of the model.
        num_kept: how many of them, from the first, are computed; what the adapter has beyond is left out.

    Raises:
        InputError: a file is missing or broken, or holds what strata does not apply exactly as PEFT does.
    """
    config = read_adapter_config(path)
    file = _find_weights(path)
    tensors = _read_tensors(file)
    roles = {name: parse_tensor_name(file, name) for name in tensors}
    if not roles:
        raise InputError(f"{file}: holds no tensors; expected those of a LoRA adapter")
    score = _find_score(file, tensors, roles, hidden_size)
    return Adapter(
        name=path.resolve().name,
        path=path,
        layers=_build_layers(file, tensors, roles, config, num_layers)[:num_kept],
        score=score,
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        declares_head=config.declares_head,
        score_bias=_find_score_bias(file, tensors, roles, score),
        labels=read_labels(path / LABELS_NAME) if (path / LABELS_NAME).is_file() else None,
    )


def check_shapes(
    adapter: Adapter, layer_weight_shapes: Mapping[str, tuple[int, ...]], *, layer_index: int | None = None
) -> None:
    """Checks that every LoRA of the adapter fits the weight it changes.

    Args:
        adapter: what to check.
        layer_weight_shapes: of a decoder layer's weights, by name in the layer ("self_attn.q_proj.weight").
        layer_index: the only layer to check, for models whose layers differ; all of them by default.

    Raises:
        InputError: a module is missing or not a matrix, or a tensor has another width.
    """
    indexes = range(len(adapter.layers)) if layer_index is None else (layer_index,)
    for index in indexes:
        for path, lora in adapter.layers[index].items():
            where = f"{adapter.path / WEIGHTS_NAME}: layers.{index}.{path}"
            shape = layer_weight_shapes.get(f"{path}.weight")
            if shape is None:
                known = ", ".join(sorted(layer_weight_shapes))
                raise InputError(f"{where} adapts a module the model's layer does not have; it has {known}")
            if len(shape) != 2:
                raise InputError(
                    f"{where} adapts a weight of shape {tuple(shape)}; expected a matrix [out, in]"
                )
            rank = lora.a.shape[0]
            _expect_shape(f"{where}.lora_A.weight", lora.a, (rank, shape[1]))
            _expect_shape(f"{where}.lora_B.weight", lora.b, (shape[0], rank))


def _find_weights(folder: Path) -> Path:
    file = folder / WEIGHTS_NAME
    if file.is_file():
        return file
    if (folder / "adapter_model.bin").is_file():
        raise InputError(
            f"{folder / 'adapter_model.bin'}: a pickle, which strata never loads; "
            f"convert it to {WEIGHTS_NAME} (load it with PEFT and call save_pretrained)"
        )
    raise InputError(f"{file}: no such file; expected an adapter saved by PEFT")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    with one_line(file, "not a complete safetensors file"), safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise InputError(
                f"{file}: tensor {name!r} is {tensor.dtype}; expected float16, bfloat16 or float32"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{file}: tensor {name!r} holds NaN or infinity; the adapter is broken")
    return tensors


def _find_score(
    file: Path, tensors: dict[str, Tensor], roles: dict[str, TensorRole], hidden_size: int
) -> Tensor | None:
    names = [name for name, role in roles.items() if role.kind == "score"]
    if not names:
        return None
    if len(names) > 1:
        raise InputError(
            f"{file}: holds {len(names)} classification heads ({', '.join(names)}); expected one"
        )
    score = tensors[names[0]]
    is_matrix = score.dim() == 2
    reads_one = is_matrix and score.shape[1] == hidden_size
    reads_others_too = is_matrix and score.shape == (1, 2 * hidden_size)
    if not reads_one and not reads_others_too:
        raise InputError(
            f"{file}: tensor {names[0]!r} has shape {tuple(score.shape)}; expected (labels, {hidden_size}), "
            f"the model's hidden size, or (1, {2 * hidden_size}) for --head contrast"
        )
    return score


def _find_score_bias(
    file: Path, tensors: dict[str, Tensor], roles: dict[str, TensorRole], score: Tensor | None
) -> Tensor | None:
    """The bias [labels] of the head; None without one."""
    name = next((name for name, role in roles.items() if role.kind == "score_bias"), None)
    if name is None:
        return None
    if score is None:
        raise InputError(f"{file}: holds {name!r} but no weight; expected a classification head with both")
    _expect_shape(f"{file}: tensor {name!r}", tensors[name], (score.shape[0],))
    return tensors[name]


def _build_layers(
    file: Path,
    tensors: dict[str, Tensor],
    roles: dict[str, TensorRole],
    config: AdapterConfig,
    num_layers: int,
) -> tuple[dict[str, LoraWeights], ...]:
    found: dict[tuple[int, str, str], dict[str, Tensor]] = {}
    for name, role in roles.items():
        if role.kind in ("score", "score_bias"):
            continue
        if role.layer_index >= num_layers:
            raise InputError(
                f"{file}: tensor {name!r} is for layer {role.layer_index}; the model has {num_layers} layers"
            )
        parts = found.setdefault((role.layer_index, role.path, role.module_name), {})
        if parts.setdefault(role.kind, tensors[name]) is not tensors[name]:
            raise InputError(f"{file}: tensor {name!r} repeats another one of the same module")
    layers: tuple[dict[str, LoraWeights], ...] = tuple({} for _ in range(num_layers))
    for (index, path, module_name), parts in found.items():
        if path in layers[index]:
            raise InputError(f"{file}: module {module_name!r} is adapted twice, under two prefixes")
        layers[index][path] = _build_lora(file, module_name, parts, config)
    return layers


def _build_lora(file: Path, module: str, found: dict[str, Tensor], config: AdapterConfig) -> LoraWeights:
    wanted = {"a": "lora_A", "b": "lora_B"} | (
        {"magnitude": "lora_magnitude_vector"} if config.use_dora else {}
    )
    for kind, suffix in wanted.items():
        if kind not in found:
            raise InputError(f"{file}: module {module!r} has no {suffix} tensor")
    if "magnitude" in found and not config.use_dora:
        raise InputError(f"{file}: module {module!r} has a lora_magnitude_vector; use_dora is false")
    a, b, magnitude = found["a"], found["b"], found.get("magnitude")
    if a.dim() != 2 or b.dim() != 2 or not a.numel() or not b.numel():
        raise InputError(
            f"{file}: module {module!r} has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}; "
            "expected two matrices (were they saved from a sharded run?)"
        )
    rank = config.rank_of(module)
    _expect_shape(f"{file}: {module}.lora_A.weight", a, (rank, a.shape[1]))
    _expect_shape(f"{file}: {module}.lora_B.weight", b, (b.shape[0], rank))
    if magnitude is not None:
        _expect_shape(f"{file}: {module}.lora_magnitude_vector", magnitude, (b.shape[0],))
    return LoraWeights(a=a, b=b, scaling=config.scaling_of(module), magnitude=magnitude)


def _expect_shape(where: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise InputError(f"{where} has shape {tuple(tensor.shape)}; expected {expected}")
