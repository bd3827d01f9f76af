"""Safetensors files written tensor by tensor, read by the safetensors library."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from strata.engine.files import OutputError
from strata.engine.pack.safetensors_writer import FileLayout, SafetensorsWriter, TensorSpec, plan_layout
from strata.engine.weights.checksums import digest_of
from strata.engine.weights.safetensors_file import TORCH_DTYPES, read_header

SPECS = st.lists(
    st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), st.lists(st.integers(0, 5), max_size=3)), max_size=8
)


def values_of(spec: TensorSpec) -> torch.Tensor:
    """Random bytes as a tensor; a bool is 0 or 1."""
    last = 1 if spec.dtype == torch.bool else 255
    content = torch.randint(0, last, (spec.num_bytes,), dtype=torch.uint8)
    return content.view(spec.dtype).view(spec.shape)


@given(SPECS, st.randoms())
def test_any_tensors_in_any_order_come_back(tmp_path_factory, found, random):
    file = tmp_path_factory.mktemp("files") / "model.safetensors"
    specs = [
        TensorSpec(name=f"tensor.{number}", dtype=TORCH_DTYPES[dtype], shape=tuple(shape))
        for number, (dtype, shape) in enumerate(found)
    ]
    layout = plan_layout(specs)
    tensors = {spec.name: values_of(spec) for spec in specs}
    names = list(tensors)
    random.shuffle(names)
    with SafetensorsWriter(file, layout) as writer:
        for name in names:
            writer.write(name, tensors[name])
    assert file.stat().st_size == layout.num_bytes
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        content = tensor.reshape(-1).view(torch.uint8)
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), content)
        assert writer.digests[name] == digest_of(content.numpy().data)
        assert read_header(file)[name].offset % tensor.itemsize == 0


def layout_of_two() -> FileLayout:
    specs = [TensorSpec(name=name, dtype=torch.int8, shape=(3,)) for name in ("first", "second")]
    return plan_layout(specs)


def test_the_header_says_pytorch(tmp_path):
    header = layout_of_two().header
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    assert json.loads(header[8:])["__metadata__"] == {"format": "pt"}


def test_a_view_is_written_as_it_looks(tmp_path):
    spec = TensorSpec(name="weight", dtype=torch.float32, shape=(3, 2))
    with SafetensorsWriter(tmp_path / "file", plan_layout([spec])) as writer:
        writer.write("weight", torch.arange(6.0).view(2, 3).t())
    assert load_file(tmp_path / "file")["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_what_was_there(error, tmp_path):
    file = tmp_path / "file"
    file.write_text("before")
    writer = SafetensorsWriter(file, layout_of_two())

    def fail() -> None:
        with writer:
            writer.write("first", torch.zeros(3, dtype=torch.int8))
            raise error

    with pytest.raises(error):
        fail()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_tensor_left_out_is_an_error_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(AssertionError, match="second"),
        SafetensorsWriter(tmp_path / "file", layout_of_two()) as writer,
    ):
        writer.write("first", torch.zeros(3, dtype=torch.int8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [torch.zeros(4, dtype=torch.int8), torch.zeros(3)])
def test_a_tensor_of_another_kind_is_an_error(wrong, tmp_path):
    with pytest.raises(AssertionError), SafetensorsWriter(tmp_path / "file", layout_of_two()) as writer:
        writer.write("first", wrong)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_names_the_file(tmp_path):
    file = tmp_path / "absent" / "file"
    with (
        pytest.raises(OutputError, match=f"cannot write {file}: No such file"),
        SafetensorsWriter(file, layout_of_two()),
    ):
        raise AssertionError("unreachable")
