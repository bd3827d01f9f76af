"""A GGUF model, one file or the files of a split: its config, and its weights under transformers' names.

Reads headers, and the few numbers of the config that are tensors there.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from strata.engine.types import InputError
from strata.engine.weights.formats.gguf import KINDS, PART, GgufWeight
from strata.engine.weights.formats.stored_weight import StoredWeight, plain_weight
from strata.engine.weights.gguf.config import read_gguf_config
from strata.engine.weights.gguf.header import GgufHeader, GgufTensor, check_places, read_gguf_header
from strata.engine.weights.gguf.settings import FACTOR_TENSORS
from strata.engine.weights.safetensors_file import FLOATING_DTYPES, StoredTensor
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.dequant.gguf.dequantize import BLOCK_TYPES

SUFFIX = ".gguf"
SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
QUANT_METHOD = "gguf"


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufModel:
    """What the headers say.

    Attributes:
        files: in order.
        config: as transformers has it.
        weights: of the model, in stored order.
        notes: a line each for metadata that nobody honours.
    """

    files: tuple[Path, ...]
    config: PreTrainedConfig
    weights: tuple[StoredWeight, ...]
    notes: tuple[str, ...]


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def gguf_files(path: Path) -> tuple[Path, ...]:
    """The file, or all files of the split that it belongs to.

    Raises:
        InputError: one is missing.
    """
    match = SPLIT_NAME.fullmatch(path.name)
    files: tuple[Path, ...] = (path,)
    if match:
        count = int(match[3])
        names = (f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, count + 1))
        files = tuple(path.with_name(name) for name in names)
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None or not files:
        raise InputError(f"{missing or path}: no such file; expected a GGUF model, all files of a split")
    return files


def open_gguf(path: Path) -> GgufModel:
    """Reads the headers of a GGUF model.

    Args:
        path: the file, or any file of a split.

    Raises:
        InputError: a file that is missing or damaged, an architecture or a storage type that strata does not
            read, a tensor that the model has no weight for, or the package gguf is not installed.
    """
    require_gguf_package()
    files = gguf_files(path)
    headers = [read_gguf_header(file) for file in files]
    tensors = [tensor for header in headers for tensor in _stored_tensors(header)]
    names = Counter(tensor.name for tensor in tensors)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two files of the split hold tensor {twice}")
    factors = _read_factors(tensors)
    config, notes = read_gguf_config(headers[0], frozenset(names), factors)
    weights = _make_weights(headers[0], config, [tensor for tensor in tensors if tensor.name not in factors])
    return GgufModel(files=files, config=config, weights=tuple(weights), notes=tuple(notes))


def require_gguf_package() -> None:
    """Raises InputError when the package gguf, which knows names and numbers of ggml, is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise InputError('GGUF files need gguf; expected pip install "strata-score[gguf]"') from None


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor of a known storage type."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    stored: StoredTensor


def _stored_tensors(header: GgufHeader) -> list[_Tensor]:
    tensors = [_stored_tensor(header.file, tensor) for tensor in header.tensors.values()]
    check_places(header, {tensor.name: tensor.stored.num_bytes for tensor in tensors})
    return tensors


def _stored_tensor(file: Path, tensor: GgufTensor) -> _Tensor:
    type_name = _type_name(file, tensor)
    kind = BLOCK_TYPES[type_name]
    shape = tensor.shape if len(tensor.shape) > 1 else (*tensor.shape, 1)
    if shape[-1] % kind.weights:
        raise InputError(
            f"{file}: tensor {tensor.name} has rows of {shape[-1]} weights; "
            f"{type_name} expects a multiple of {kind.weights}"
        )
    packed = (*shape[:-1], kind.row_bytes(shape[-1]))
    stored = StoredTensor(
        name=tensor.name,
        file=file,
        dtype="U8",
        shape=packed,
        offset=tensor.offset,
        num_bytes=math.prod(packed),
    )
    return _Tensor(name=tensor.name, type_name=type_name, shape=tensor.shape, stored=stored)


def _type_name(file: Path, tensor: GgufTensor) -> str:
    from gguf import GGMLQuantizationType

    known = {member.value: member.name for member in GGMLQuantizationType}
    name = known.get(tensor.type_number, f"type {tensor.type_number}")
    if name not in BLOCK_TYPES:
        raise InputError(
            f"{file}: tensor {tensor.name} is stored as {name}; expected one of {', '.join(BLOCK_TYPES)}"
        )
    return name


def _read_factors(tensors: Sequence[_Tensor]) -> dict[str, list[float]]:
    """Factors of rotary frequencies, which a file holds once or once a block, all the same."""
    factors = {}
    with closing(TensorReader()) as reader:
        for tensor in tensors:
            if tensor.name in FACTOR_TENSORS:
                plain = _plain(tensor, tensor.name)
                factors[tensor.name] = reader.read(next(iter(plain.parts.values()))).float().tolist()
    return factors


def _make_weights(
    header: GgufHeader, config: PreTrainedConfig, tensors: Sequence[_Tensor]
) -> Iterator[StoredWeight]:
    from strata.engine.weights.gguf.names import gguf_names

    try:
        names = gguf_names(header.metadata["general.architecture"], config)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{header.file}: transformers makes no model of its metadata: {reason}") from None
    for tensor in tensors:
        experts = names.expert_names(tensor.name, tensor.shape[0]) if len(tensor.shape) == 3 else None
        if experts is not None:
            yield from (_weight(part, name) for part, name in _unstack(tensor, experts))
            continue
        name = names.weight_name(tensor.name)
        if name is None:
            raise InputError(
                f"{tensor.stored.file}: tensor {tensor.name} has no place in transformers' "
                f"{type(config).__name__.removesuffix('Config')}; expected a model without it"
            )
        try:
            conversion = names.conversion(tensor.name, tensor.shape)
        except ValueError as error:
            raise InputError(f"{tensor.stored.file}: tensor {tensor.name}: {error}") from None
        if conversion.row_order is None and not conversion.offset and conversion.shape == tensor.shape:
            yield _weight(tensor, name)
        else:
            yield replace(
                _encoded(tensor, name),
                shape=conversion.shape,
                row_order=conversion.row_order,
                offset=conversion.offset,
            )


def _unstack(tensor: _Tensor, names: Sequence[str]) -> Iterator[tuple[_Tensor, str]]:
    """The matrices of a stack, each a byte range of it."""
    size = tensor.stored.num_bytes // len(names)
    for number, name in enumerate(names):
        stored = replace(
            tensor.stored,
            name=f"{tensor.name}[{number}]",
            shape=tensor.stored.shape[1:],
            offset=tensor.stored.offset + number * size,
            num_bytes=size,
        )
        yield replace(tensor, name=stored.name, shape=tensor.shape[1:], stored=stored), name


def _weight(tensor: _Tensor, name: str) -> StoredWeight:
    return _plain(tensor, name) if tensor.type_name in FLOATING_DTYPES else _encoded(tensor, name)


def _plain(tensor: _Tensor, name: str) -> StoredWeight:
    stored = replace(tensor.stored, dtype=tensor.type_name, shape=tensor.shape)
    return replace(plain_weight(stored), name=name)


def _encoded(tensor: _Tensor, name: str) -> GgufWeight:
    return KINDS[tensor.type_name](name=name, shape=tensor.shape, parts={PART: tensor.stored})
