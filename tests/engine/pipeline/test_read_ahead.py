"""The next model's first bytes are read while the one before computes; a hint that nothing depends on."""

from __future__ import annotations

import time

import pytest

from strata.engine.pipeline.read_ahead import ReadAhead

from .demo_pipeline import CASCADE, DATA, run, write_questions


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened in five seconds")


def test_it_reads_the_weights_up_to_a_limit():
    size = sum(path.stat().st_size for path in (DATA / "model").glob("*.safetensors"))
    with ReadAhead(DATA / "model") as ahead:
        ahead.begin()
        ahead.begin()
        wait_for(lambda: ahead.num_bytes == size)
    with ReadAhead(DATA / "model", most_bytes=1) as ahead:
        ahead.begin()
        wait_for(lambda: ahead.num_bytes)
    with ReadAhead(None) as ahead:
        ahead.begin()
        assert ahead.num_bytes == 0


def test_a_file_that_goes_away_is_told_by_whoever_needs_it(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with ReadAhead(tmp_path) as ahead:
        ahead.begin()
    assert ahead.num_bytes == 0


@pytest.mark.usefixtures("fixed_rates")
def test_a_run_reads_the_next_base_before_its_last_chunk(checkpoint, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(ReadAhead, "begin", lambda self: begun.append(self._model))
    other = checkpoint("llama-gqa")
    text = CASCADE.replace(
        f"open: {{model: {DATA / 'model'}, adapter: {DATA / 'adapter'}", f"open: {{model: {other}"
    )
    found = run(tmp_path, text, write_questions(tmp_path / "questions.csv", num=6))
    assert begun == [other, None]
    assert found.record["measured"]["questions_with_context"] == 3
