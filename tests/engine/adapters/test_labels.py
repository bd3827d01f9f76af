"""Files that name labels: what is read, and what is refused."""

import json

import pytest

from strata.engine.adapters.labels import read_labels, write_labels
from strata.engine.types import InputError


def test_what_is_written_comes_back(tmp_path):
    names = ("sea", "hill top", "7", "\u00e9t\u00e9", *map(str, range(20, 40)))
    write_labels(tmp_path / "labels.json", names)
    assert read_labels(tmp_path / "labels.json") == names
    # As a transformers config has it, among other things.
    config = {"hidden_size": 8} | json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_labels(tmp_path / "config.json") == names
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    assert read_labels(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"labels\.json: id2label: field required"),
        ('{"id2label": {"0": 1}}', r"id2label\.0: input should be a valid string, found 1"),
        ('{"id2label": {"0": "a", "2": "b"}}', "2 labels but no id 1; expected 0, 1, 2"),
        ('{"id2label": {"0": "a", "1": "a"}}', "labels 0 and 1 are both 'a'"),
        ('{"id2label": {"0": " "}}', "label 0 has a blank name"),
        ('{"id2label": {}}', "no labels"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_refused(content, message, tmp_path):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "labels.json")
