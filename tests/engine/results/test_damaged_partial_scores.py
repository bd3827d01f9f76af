"""partial.jsonl as crashes, disks and hands leave it: one line that names the file and the line, or dropped.

The names are those of the hostile corpus' cases.
"""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from strata.engine.results.partial_scores import FILE_NAME, PartialScores
from strata.engine.types import InputError, Question, QuestionScores

QUESTIONS = [
    Question(id=str(number), prompt="p", options=("a", "b", "c"), answer=None, row=number)
    for number in range(4)
]
HEADER = json.dumps({"fingerprint": "print"}) + "\n"
WHOLE = {"id": "1", "scores": [1.0, 2.0, 3.0], "probabilities": [0.1, 0.2, 0.7], "members": {}}
LINE = json.dumps(WHOLE) + "\n"


def line_with(**changed: object) -> str:
    return json.dumps(WHOLE | changed) + "\n"


DAMAGED = {
    "pl_half_nl": (HEADER + LINE[:40] + "\n" + LINE, 2),
    "pl_garbage_mid": (HEADER + LINE + "{garbage}\n" + LINE, 3),
    "pl_blank_mid": (HEADER + LINE + "\n" + LINE, 3),
    "pl_nul_mid": (HEADER + "\0\0\0\0\n" + LINE, 2),
    "pl_notutf8": (HEADER.encode() + LINE.encode() + b'{"id": "\xff"}\n', 3),
    "pl_list": (HEADER + "[1, 2]\n", 2),
    "pl_nokey": (HEADER + '{"id": "1"}\n', 2),
    "pl_first_list": ("[]\n" + LINE, 1),
    "pl_first_null": ("null\n" + LINE, 1),
    "pl_deep": (HEADER + "[" * 100_000 + "]" * 100_000 + "\n", 2),
    "pl_short": (HEADER + line_with(scores=[1.0]), 2),
    "pl_short_member": (HEADER + line_with(members={"lora": [1.0]}), 2),
    "pl_strscores": (HEADER + line_with(scores=["1", "2", "3"]), 2),
    "pl_null_scores": (HEADER + line_with(scores=[None, 1.0, 2.0]), 2),
    "pl_nan_scores": (HEADER + line_with(scores=[float("nan"), 1.0, 2.0]), 2),
    "pl_nested": (HEADER + line_with(scores=[[1.0], [2.0], [3.0]]), 2),
    "pl_chain": (HEADER + LINE.strip() + LINE, 2),
    "pl_unknown_id": (HEADER + line_with(id="another"), 2),
    "pl_number_as_id": (HEADER + line_with(id=1), 2),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_told_by_file_and_line(name, tmp_path):
    content, number = DAMAGED[name]
    (tmp_path / FILE_NAME).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as raised:
        PartialScores(tmp_path, "print").read(QUESTIONS)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / FILE_NAME}, line {number}: ")
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("tail", ["", LINE[:40], LINE.strip()], ids=["whole", "cut off", "all but its end"])
def test_what_is_added_after_a_crash_is_whole(tail, tmp_path):
    """A line that a crash cut off is dropped, and what a resumed run adds does not grow onto it."""
    (tmp_path / FILE_NAME).write_text(HEADER + LINE + tail)
    kept = PartialScores(tmp_path, "print")
    assert list(kept.read(QUESTIONS)) == ["1"]
    kept.start(resume=True)
    scores = np.array([0.5, -1.0, 2.0])
    kept.add([QuestionScores(question=QUESTIONS[2], scores=scores, probabilities=scores)])
    found = PartialScores(tmp_path, "print").read(QUESTIONS)
    assert list(found) == ["1", "2"]
    np.testing.assert_array_equal(found["2"].scores, scores)


@pytest.mark.parametrize("content", ["", HEADER[:5]], ids=["empty", "half a header"])
def test_a_file_without_a_whole_line_is_begun_again(content, tmp_path):
    (tmp_path / FILE_NAME).write_text(content)
    kept = PartialScores(tmp_path, "print")
    assert kept.read(QUESTIONS) == {}
    kept.start(resume=True)
    assert (tmp_path / FILE_NAME).read_text() == HEADER


def test_pl_model_weights_replaced_between_kill_and_resume(checkpoint, score, tmp_path, monkeypatch):
    model, out = shutil.copytree(checkpoint("llama-gqa"), tmp_path / "model"), tmp_path / "out"
    add = PartialScores.add

    def stop_after_a_group(self, scores):
        add(self, scores)
        if scores:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialScores, "add", stop_after_a_group)
    with pytest.raises(KeyboardInterrupt):
        score(model=model, num_groups=3, out=out)
    monkeypatch.setattr(PartialScores, "add", add)
    weights = model / "model.safetensors"
    data, status = weights.read_bytes(), weights.stat()
    weights.write_bytes(data[:-64] + bytes(64))
    with pytest.raises(InputError, match="other questions, model, weights or settings"):
        score(model=model, num_groups=3, out=out, resume=True)
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert score(model=model, num_groups=3, out=out, resume=True).record["measured"]["resumed_questions"] > 0
