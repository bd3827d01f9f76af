"""What a reranker's folder says of it, saved by sentence-transformers or by transformers. Loads no model.

Source of names and defaults: sentence_transformers.cross_encoder.model.CrossEncoder, version 6.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from strata.engine.encoders.encoder import is_encoder
from strata.engine.json_files import Schema, check_schema, read_json, read_json_object
from strata.engine.model_files.config_file import CONFIG_FILE, read_config_json
from strata.engine.types import InputError

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
TRANSFORMER, LOGIT_SCORE = "Transformer", "LogitScore"
EXPECTED = "expected Transformer, and for a causal model LogitScore behind it"

RerankerKind = Literal["causal", "decoder", "encoder"]
"""A language model asked for yes and no, a decoder with a trained head, or an encoder with one."""


class ModuleEntry(Schema):
    """A module of modules.json: its folder and the class it is made with."""

    path: str = Field(pattern=r"^[\w.-]*$")
    type: str


class ModuleList(Schema):
    """modules.json, which is a list."""

    modules: list[ModuleEntry] = Field(min_length=1)


class SavedSettings(Schema):
    """config_sentence_transformers.json; of config.json, the part `sentence_transformers`."""

    activation_fn: str | None = None
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


class TransformerSettings(Schema):
    """sentence_bert_config.json."""

    max_seq_length: int | None = None
    modality_config: dict[str, Any] | None = None


class LogitTokens(Schema):
    """config.json of a LogitScore module: the tokens for yes and no."""

    true_token_id: int
    false_token_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class RerankerFolder:
    """A reranker as its files describe it.

    Attributes:
        path: the folder.
        kind: how it is scored.
        num_labels: of its head; 1 for a causal model.
        activation: name of what is applied to logits; None where the folder says none.
        prompts: texts that may stand before queries, by name.
        default_prompt_name: the one that is used unless another is asked for.
        max_seq_length: longest pair in tokens; None where the tokenizer and the model say it.
        logit_tokens: of a causal model; None for the tokens of the words yes and no.
        uses_chat: whether pairs become conversations; None where the tokenizer decides.
    """

    path: Path
    kind: RerankerKind
    num_labels: int
    activation: str | None
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    max_seq_length: int | None
    logit_tokens: LogitTokens | None
    uses_chat: bool | None


def read_reranker_folder(path: Path) -> RerankerFolder:
    """Reads the JSON of a folder.

    Raises:
        InputError: no folder, a file that is broken, or modules that strata does not have.
    """
    if not path.is_dir():
        raise InputError(f"{path}: not a directory; expected a reranker's folder on this machine")
    config = read_config_json(path)
    settings = _saved_settings(path, config)
    transformer = _optional(path / TRANSFORMER_FILE, TransformerSettings)
    modalities = transformer.modality_config
    kind = _kind(path, config)
    logit_tokens = _logit_tokens(path)
    if logit_tokens is not None and kind != "causal":
        raise InputError(f"{path / MODULES_FILE}: LogitScore behind a model that is no causal one")
    return RerankerFolder(
        path=path,
        kind=kind,
        num_labels=1 if kind == "causal" else _num_labels(config),
        activation=settings.activation_fn or config.get("sbert_ce_default_activation_function"),
        prompts=settings.prompts or {},
        default_prompt_name=settings.default_prompt_name,
        max_seq_length=transformer.max_seq_length,
        logit_tokens=logit_tokens,
        uses_chat=None if modalities is None else "message" in modalities,
    )


def _saved_settings(path: Path, config: Mapping[str, Any]) -> SavedSettings:
    if (path / SETTINGS_FILE).is_file():
        return _optional(path / SETTINGS_FILE, SavedSettings)
    inside = config.get("sentence_transformers", {})
    return check_schema(SavedSettings, inside, f"{path / CONFIG_FILE}: sentence_transformers")


def _optional(file: Path, schema: type[Any]) -> Any:
    """What a file holds, or what it would by default where it is not there."""
    return check_schema(schema, read_json_object(file) if file.is_file() else {}, str(file))


def _kind(path: Path, config: Mapping[str, Any]) -> RerankerKind:
    architectures = config.get("architectures") or [""]
    if str(architectures[0]).endswith("ForCausalLM"):
        return "causal"
    return "encoder" if is_encoder(path) else "decoder"


def _num_labels(config: Mapping[str, Any]) -> int:
    """As transformers counts them; a folder without a classifier gets one label there."""
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else int(config.get("num_labels", 2))


def _logit_tokens(path: Path) -> LogitTokens | None:
    file = path / MODULES_FILE
    if not file.is_file():
        return None
    modules = check_schema(ModuleList, {"modules": read_json(file)}, str(file)).modules
    classes = [module.type.rpartition(".")[2] for module in modules]
    if classes not in ([TRANSFORMER], [TRANSFORMER, LOGIT_SCORE]) or modules[0].path:
        raise InputError(f"{file}: modules {', '.join(classes)}; {EXPECTED}")
    if classes == [TRANSFORMER]:
        return None
    settings = path / modules[1].path / CONFIG_FILE
    return check_schema(LogitTokens, read_json_object(settings), str(settings))
