"""LoRA adapters in PEFT layout: reading them, and applying them to one decoder layer, merged or not.

Knows nothing of models, sweeps or devices, and never imports peft.

Legend: T tokens, D model dim, in / out a linear module's features, r an adapter's rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from strata.engine.adapter_config import AdapterConfig, TensorRole, parse_tensor_name, read_adapter_config
from strata.engine.types import InputError

WEIGHTS_NAME = "adapter_model.safetensors"
# Rows of W + s B A held in float32 at a time while merging or taking DoRA's norm.
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraWeights:
    """The adapter of one linear module: W becomes W + scaling * B A.

    With DoRA, each row is then rescaled to the norm that `magnitude` gives. `a` [r, in], `b` [out, r] and
    `magnitude` [out] (None without DoRA) are floating-point, in the file's dtype.
    An object belongs to one weight for good: LoraLinear relies on it to compute DoRA's gain once.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        magnitude_bytes = 0 if self.magnitude is None else self.magnitude.nbytes
        return self.a.nbytes + self.b.nbytes + magnitude_bytes

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LoraWeights:
        """A copy on `device` with `a` and `b` in `dtype`; the magnitude becomes float32."""
        magnitude = None if self.magnitude is None else self.magnitude.to(device, torch.float32)
        return replace(self, a=self.a.to(device, dtype), b=self.b.to(device, dtype), magnitude=magnitude)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A LoRA adapter; its tensors are memory-mapped from the file.

    `layers` holds, for each decoder layer, the LoraWeights by module path in the layer ("self_attn.q_proj").
    `score` [num_labels, D] is the trained classification head, if any. `num_bytes` counts all tensors.
    """

    name: str
    path: Path
    layers: tuple[dict[str, LoraWeights], ...]
    score: Tensor | None
    num_bytes: int

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Paths of the modules that any layer adapts, sorted."""
        return tuple(sorted({path for layer in self.layers for path in layer}))


def read_adapter(path: Path, *, hidden_size: int, num_layers: int) -> Adapter:
    """Reads and validates an adapter folder written by PEFT.

    Args:
        path: folder with adapter_config.json and adapter_model.safetensors.
        hidden_size: D of the model, which a score head must have.
        num_layers: decoder layers of the model.

    Raises:
        InputError: a file is missing or broken, or holds what strata does not apply exactly as PEFT does.
    """
    config = read_adapter_config(path)
    file = _find_weights(path)
    tensors = _read_tensors(file)
    roles = {name: parse_tensor_name(file, name) for name in tensors}
    if not roles:
        raise InputError(f"{file}: holds no tensors; expected those of a LoRA adapter")
    return Adapter(
        name=path.resolve().name,
        path=path,
        layers=_build_layers(file, tensors, roles, config, num_layers),
        score=_find_score(file, tensors, roles, hidden_size),
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
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


def merge(weight: Tensor, lora: LoraWeights, *, out: Tensor | None = None) -> Tensor:
    """Folds an adapter into a weight: W + s B A in float32, for DoRA times m / ||W + s B A|| row by row.

    Needs 64 MiB or so beside the result.

    Args:
        weight: [out, in], floating-point.
        lora: the module's adapter, on any device.
        out: where to put the result; `weight` itself is allowed. A new tensor by default.

    Returns:
        [out, in] in the weight's dtype.

    Source: peft.tuners.lora.layer.Linear.merge; DoRA: Liu et al. 2024, eq. 5.
    """
    merged = torch.empty_like(weight) if out is None else out
    for rows, adapted in _adapted_rows(weight, lora):
        if lora.magnitude is not None:
            magnitude = lora.magnitude[rows].to(adapted)
            adapted *= (magnitude / torch.linalg.norm(adapted, dim=1)).unsqueeze(1)
        merged[rows] = adapted
    return merged


def dora_gain(weight: Tensor, lora: LoraWeights) -> Tensor:
    """DoRA's factor of each output feature, m / ||W + s B A||.

    Args:
        weight: [out, in].
        lora: an adapter with a magnitude.

    Returns:
        [out] float32 (float64 for a float64 weight) on the weight's device.
    """
    assert lora.magnitude is not None, "only DoRA has a gain"
    norms = torch.cat([torch.linalg.norm(adapted, dim=1) for _, adapted in _adapted_rows(weight, lora)])
    return lora.magnitude.to(norms) / norms


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora: LoraWeights, gain: Tensor | None = None
) -> Tensor:
    """The adapted linear map without forming the adapted weight: gain * (x W^T + s (x A^T) B^T) + bias.

    Args:
        x: [..., in].
        weight: [out, in] in x's dtype.
        bias: [out] or None.
        lora: the module's adapter; cast to x's device and dtype when it is elsewhere.
        gain: `dora_gain(weight, lora)` when it is already known; not used without DoRA.

    Returns:
        [..., out] in x's dtype.
    """
    y = F.linear(x, weight, bias if lora.magnitude is None else None)
    if lora.magnitude is not None and gain is None:
        gain = dora_gain(weight, lora)
    return _add_low_rank(y, x, bias, lora, gain)


def _add_low_rank(
    y: Tensor, x: Tensor, bias: Tensor | None, lora: LoraWeights, gain: Tensor | None
) -> Tensor:
    """Adds s (x A^T) B^T to y in place; with DoRA, whose y comes without bias, also gain and bias."""
    low_rank = F.linear(x, lora.a.to(x))
    y.view(-1, y.shape[-1]).addmm_(
        low_rank.view(-1, low_rank.shape[-1]), lora.b.to(x).t(), alpha=lora.scaling
    )
    if gain is None:
        return y
    # A float32 gain times a half-precision y in place is computed in float32 and rounded once.
    y.mul_(gain)
    return y if bias is None else y.add_(bias)


class LoraLinear(nn.Module):
    """A linear module that applies the active adapter of the current layer, unmerged.

    It owns `weight` and `bias` under the names a Linear has, so that weights are assigned as before. DoRA's
    gain is computed once for each LoraWeights and kept as long as that object lives.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes over the parameters of a linear module: weight [out, in] and bias [out] or None."""
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.active: LoraWeights | None = None
        self._gains: WeakKeyDictionary[LoraWeights, Tensor] = WeakKeyDictionary()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in] to [..., out]."""
        lora = self.active
        if lora is None:
            return self.apply_weight(x, self.bias)
        y = self.apply_weight(x, self.bias if lora.magnitude is None else None)
        return _add_low_rank(y, x, self.bias, lora, self._gain(lora))

    def apply_weight(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] times the base weight, plus a bias."""
        return F.linear(x, self.weight, bias)

    def dense_weight(self) -> Tensor:
        """The base weight [out, in], floating-point."""
        return self.weight

    def _gain(self, lora: LoraWeights) -> Tensor | None:
        if lora.magnitude is None:
            return None
        if lora not in self._gains:
            self._gains[lora] = dora_gain(self.dense_weight(), lora).detach()
        return self._gains[lora]


def wrap_linears(layer: nn.Module, module_paths: Iterable[str]) -> None:
    """Replaces linear submodules of a decoder layer, in place, by LoraLinear with the same parameters.

    Parameters may be on the meta device. Modules already wrapped are left alone.

    Raises:
        InputError: a path names no submodule, or one that is not an ordinary Linear.
    """
    modules = dict(layer.named_modules())
    for path in module_paths:
        module = modules.get(path)
        if isinstance(module, LoraLinear):
            continue
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            found = "nothing" if module is None else type(module).__name__
            raise InputError(
                f"an adapter changes {path!r}, where the model's layer has {found}; expected a Linear"
            )
        layer.set_submodule(path, LoraLinear(module.weight, module.bias))


def set_active(layer: nn.Module, lora: Mapping[str, LoraWeights] | None) -> None:
    """Makes a wrapped layer apply one adapter's LoraWeights by module path, or none.

    Wrapped modules the adapter does not change become plain.

    Raises:
        ValueError: `lora` names a module that is not wrapped.
    """
    wrapped = {path: module for path, module in layer.named_modules() if isinstance(module, LoraLinear)}
    lora = lora or {}
    if missing := sorted(set(lora) - set(wrapped)):
        raise ValueError(f"modules {missing} are not wrapped; wrapped are {sorted(wrapped)}")
    for path, module in wrapped.items():
        module.active = lora.get(path)


def _adapted_rows(weight: Tensor, lora: LoraWeights) -> Iterator[tuple[slice, Tensor]]:
    """Yields W + s B A, a new tensor [rows, in] in float32 or better, a block of rows at a time."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a = lora.a.to(weight.device, dtype)
    b = lora.b.to(weight.device, dtype)
    num_rows = max(1, _BLOCK_BYTES // (weight.shape[1] * dtype.itemsize))
    for start in range(0, weight.shape[0], num_rows):
        rows = slice(start, start + num_rows)
        yield rows, (b[rows] @ a).mul_(lora.scaling).add_(weight[rows])


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
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a complete safetensors file ({error})") from error
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
    if score.dim() != 2 or score.shape[1] != hidden_size:
        raise InputError(
            f"{file}: tensor {names[0]!r} has shape {tuple(score.shape)}; expected (labels, {hidden_size}), "
            "the model's hidden size"
        )
    return score


def _build_layers(
    file: Path,
    tensors: dict[str, Tensor],
    roles: dict[str, TensorRole],
    config: AdapterConfig,
    num_layers: int,
) -> tuple[dict[str, LoraWeights], ...]:
    found: dict[tuple[int, str, str], dict[str, Tensor]] = {}
    for name, role in roles.items():
        if role.kind == "score":
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
