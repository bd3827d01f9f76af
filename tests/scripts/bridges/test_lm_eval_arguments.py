"""What `--model_args` may say of strata's model; needs no lm-evaluation-harness."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest
import torch

from strata.engine.types import InputError
from strata.scripts import cli
from strata.scripts.bridges import lm_eval_command
from strata.scripts.bridges.lm_eval_arguments import LMArguments


def test_what_the_harness_gives_by_itself(tmp_path):
    given = {"pretrained": str(tmp_path), "batch_size": 1, "device": "cuda:0"}
    arguments = LMArguments.read(given)
    assert arguments.ignored_batch_size == ""
    assert arguments.machine().devices == "auto"
    assert arguments.member().model == tmp_path
    assert arguments.member().adapter is None


def test_every_argument_reaches_its_setting(tmp_path):
    arguments = LMArguments.read(
        {
            "pretrained": tmp_path,
            "peft": str(tmp_path / "adapter"),
            "dtype": torch.bfloat16,
            "devices": "cuda:0+cuda:1",
            "memory_gib": 4,
            "host_memory_gib": 8.5,
            "cache_dir": str(tmp_path / "cache"),
            "verify": True,
            "batch_size": "auto",
        }
    )
    machine = arguments.machine()
    assert (machine.devices, machine.dtype, machine.verify) == ("cuda:0,cuda:1", "bfloat16", True)
    assert (machine.memory_gib, machine.host_memory_gib) == (4, 8.5)
    assert machine.cache_dir == tmp_path / "cache"
    assert arguments.member().adapter == tmp_path / "adapter"


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "cpu"), ("cuda", "auto"), ("cuda:1", "cuda:1"), (None, "auto")]
)
def test_devices(tmp_path, device, expected):
    assert LMArguments.read({"pretrained": tmp_path, "device": device}).machine().devices == expected


def test_a_gguf_file_in_a_folder(tmp_path):
    (tmp_path / "m.gguf").touch()
    assert LMArguments.read({"pretrained": tmp_path, "gguf_file": "m.gguf"}).model_path == tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parallelize": True}, "--model_args: parallelize: "),
        ({"dtype": "float64"}, "--model_args: dtype: .*'float32'.* found 'float64'"),
        ({"trust_remote_code": True}, "--model_args: trust_remote_code: expected false: no code"),
        ({"enable_thinking": True}, "--model_args: enable_thinking: expected false"),
        ({"memory_gib": 0}, "--model_args: memory_gib: .*greater than 0"),
        ({"max_length": "long"}, "--model_args: max_length: .*integer, found 'long'"),
        ({"revision": "v1"}, "--model_args: revision: .*'main'"),
    ],
)
def test_what_means_nothing_is_refused_in_a_line(tmp_path, given, message):
    with pytest.raises(InputError, match=message) as raised:
        LMArguments.read({"pretrained": tmp_path, **given})
    assert "\n" not in str(raised.value)


def test_models_are_not_downloaded():
    arguments = LMArguments.read({"pretrained": "owner/model"})
    with pytest.raises(InputError, match="pretrained=owner/model: expected a folder or a GGUF file"):
        arguments.member()


def test_an_absent_harness_is_told_with_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(lm_eval_command, "find_spec", lambda name: None)
    assert cli.main(["lm-eval", "--tasks", "t"]) == 2
    expected = 'strata: lm-eval is not installed; expected pip install "strata-score[lm-eval]"\n'
    assert capsys.readouterr().err == expected


STAND_IN = {
    "lm_eval": {},
    "lm_eval.api": {},
    "lm_eval.api.instance": {"Instance": object},
    "lm_eval.api.model": {"TemplateLM": type("TemplateLM", (), {})},
    "lm_eval.utils": {"get_rolling_token_windows": None, "make_disjoint_window": None},
}
"""A harness that has no more than what the bridge imports."""


def test_the_entry_point_gives_a_harness_that_reads_them_a_model_of_its_own_kind(monkeypatch):
    """As lm-evaluation-harness after 0.5.0.dev1 does; that the wheel has the entry: tests/test_wheel.py."""
    for name, content in STAND_IN.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    # Imported anew here, and gone when the test ends.
    bridge = lm_eval_command.MODEL_CLASS.partition(":")[0]
    monkeypatch.setitem(sys.modules, bridge, None)
    del sys.modules[bridge]
    entry = EntryPoint(
        name=lm_eval_command.MODEL_NAME, value=lm_eval_command.MODEL_CLASS, group="lm_eval.models"
    )
    assert issubclass(entry.load(), STAND_IN["lm_eval.api.model"]["TemplateLM"])
