"""Few-shot examples are read like questions, answered ones only."""

import pytest

from strata.engine.questions.shots import read_shots
from strata.engine.types import InputError

from ...sample_questions import write_jsonl

ROWS = [
    {"id": n, "question": f"q{n}", "options": ["a", "b"], "answer": answer, "context": "c"}
    for n, answer in enumerate([0, None, 1, 1, 0])
]


def test_one_more_than_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "shots.jsonl", [ROWS[0], *ROWS])
    path.write_text(path.read_text().replace('"id": 0', '"id": 9', 1))
    shots = read_shots(path, 2, context_column="context")
    assert [(shot.prompt, shot.answer, shot.context) for shot in shots] == [
        ("q0", 0, "c"),
        ("q2", 1, "c"),
        ("q3", 1, "c"),
    ]
    assert len(read_shots(path, 4, context_column="none")) == 4
    assert {shot.context for shot in read_shots(path, 4, context_column="none")} == {""}


@pytest.mark.parametrize(
    ("number", "message"), [(0, "--num-shots 0"), (5, "4 question.*expected at least 5")]
)
def test_too_few_are_refused(tmp_path, number, message):
    path = write_jsonl(tmp_path / "shots.jsonl", ROWS)
    with pytest.raises(InputError, match=message):
        read_shots(path, number, context_column="context")
