"""The context sources of `strata run`: settings of `strata search` in its YAML, and how each is searched."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields
from functools import partial
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from strata.engine.model_files.opening import OPENING
from strata.engine.pipeline.contexts import Finder
from strata.engine.types import InputError, Question, RunWarnings
from strata.engine.yaml_files import YamlFile
from strata.retrieval.open_index import open_tools
from strata.retrieval.search import search
from strata.retrieval.search_config import SearchConfig
from strata.scripts.contexts.search_contexts import build_contexts, token_counter
from strata.scripts.index import require_packages
from strata.scripts.search import member_scorer, packages_for

OF_THE_RUN = (
    "questions",
    "out",
    "id_column",
    "context_column",
    "num_contexts",
    "context_per_method",
    "qrels",
    "per_query",
    "limit",
    "progress",
)
"""Settings of a search that a source does not have: the run decides them."""


class SearchStoppedError(Exception):
    """The run ended while a search was under way."""


def finders(
    file: YamlFile, sources: Sequence[str], retrieval: Mapping[str, dict[str, Any]], warnings: RunWarnings
) -> dict[str, Finder]:
    """What searches each source, in order of first use; opens no index yet.

    Args:
        file: for messages.
        sources: names of the sources that members use.
        retrieval: settings by source.
        warnings: told what is odd.

    Raises:
        InputError: settings that mean nothing, with their place, or packages that are missing.
    """
    configs = {name: _read_source(file, name, retrieval[name]) for name in sources}
    for name, config in configs.items():
        require_packages(packages_for(config))
        if not (config.index / "manifest.json").is_file():
            message = f"{config.index}: holds no index; expected a folder that `strata index` made"
            raise file.error(("retrieval", name, "index"), message)
    return {name: partial(_find, config, warnings) for name, config in configs.items()}


def _find(
    config: SearchConfig, warnings: RunWarnings, questions: Sequence[Question], stopped: threading.Event
) -> list[str]:
    def advance(count: int) -> None:
        if stopped.is_set():
            raise SearchStoppedError

    with ExitStack() as opened:
        with OPENING:
            count_tokens = token_counter(config.tokenizer, warnings)
            member = opened.enter_context(member_scorer(config))
            tools = opened.enter_context(closing(open_tools(config, member)))
        result = search(questions, config, tools, advance)
        contexts = build_contexts(questions, result, config, tools, count_tokens)
    return [context.text for context in contexts[config.context_column]]


def _read_source(file: YamlFile, name: str, given: Mapping[str, Any]) -> SearchConfig:
    hints = get_type_hints(SearchConfig)
    known = [field.name for field in fields(SearchConfig) if field.name not in OF_THE_RUN]
    settings: dict[str, Any] = {}
    for key, value in given.items():
        keys = ("retrieval", name, key)
        if key not in known:
            raise file.error(keys, f"unknown; expected one of {', '.join(known)}")
        try:
            settings[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise file.error(keys, error.errors(include_url=False)[0]["msg"]) from None
    if "index" not in settings:
        raise file.error(("retrieval", name), "no index; expected the folder that `strata index` made")
    # A question file and a result file are the run's, which asks and keeps contexts itself.
    config = SearchConfig(questions=file.path, out=file.path.with_suffix(".csv"), **settings)
    try:
        config.check()
    except InputError as error:
        raise file.error(("retrieval", name), str(error)) from None
    return config
