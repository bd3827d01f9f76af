"""The JSON of a tokenizer's files, checked before tokenizers and transformers see them.

A vocabulary with a huge id makes the tokenizers library end the process, hence the bounds. Knows nothing of
texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from strata.engine.json_files import Schema, check_schema, read_json_object, shown
from strata.engine.model_files.config_file import CONFIG_FILE, read_config_json
from strata.engine.types import InputError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TOKEN_ID = 10_000_000
MAX_SMALL_FILE_BYTES = 64 << 20

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


def _token_id_text(value: str) -> str:
    if not (value.isascii() and value.isdigit() and len(value) < 9 and int(value) <= MAX_TOKEN_ID):
        raise ValueError(f"expected a token id of at most {MAX_TOKEN_ID} as the key")
    return value


class AddedToken(Schema):
    """A token with its text and how it is matched."""

    content: str
    special: bool | None = None
    normalized: bool | None = None
    lstrip: bool | None = None
    rstrip: bool | None = None
    single_word: bool | None = None


class NumberedToken(AddedToken):
    """An added token of tokenizer.json."""

    id: TokenId


class TokenModel(Schema):
    """The model of tokenizer.json: token texts by id, or in order with their scores (Unigram)."""

    type: str | None = None
    vocab: dict[str, TokenId] | list[Annotated[list[Any], Field(min_length=2, max_length=2)]] | None = None
    merges: list[Any] | None = None
    unk_id: TokenId | None = None


class TokenizerJson(Schema):
    """tokenizer.json."""

    model: TokenModel
    added_tokens: list[NumberedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None


Special = str | AddedToken | None
SpecialList = list[str | AddedToken] | dict[str, str | AddedToken] | None


class SpecialTokens(Schema):
    """special_tokens_map.json, and the same keys of tokenizer_config.json."""

    bos_token: Special = None
    eos_token: Special = None
    unk_token: Special = None
    sep_token: Special = None
    pad_token: Special = None
    cls_token: Special = None
    mask_token: Special = None
    additional_special_tokens: SpecialList = None
    extra_special_tokens: SpecialList = None


class TokenizerConfig(SpecialTokens):
    """tokenizer_config.json."""

    tokenizer_class: str | None = None
    auto_map: dict[str, Any] | list[Any] | None = None
    added_tokens_decoder: dict[Annotated[str, AfterValidator(_token_id_text)], AddedToken] | None = None
    fast_tokenizer_files: list[str] | None = None
    model_max_length: float | None = None
    padding_side: str | None = None
    truncation_side: str | None = None


class TokenIds(Schema):
    """vocab.json and added_tokens.json, whose keys are texts."""

    tokens: dict[str, TokenId]


def check_tokenizer_files(folder: Path) -> None:
    """Checks all of a tokenizer's JSON files that a folder holds, and its config.json.

    Raises:
        InputError: a value that cannot be, or a tokenizer that only code of the folder can build; names the
            file and the key.
    """
    if (folder / CONFIG_FILE).is_file():
        read_config_json(folder)
    for file in sorted([*folder.glob(TOKENIZER_FILE), *folder.glob("tokenizer.*.json")]):
        check_schema(TokenizerJson, read_json_object(file), str(file))
    if (file := folder / "special_tokens_map.json").is_file():
        check_schema(SpecialTokens, _read_small(file), str(file))
    for name in ("vocab.json", "added_tokens.json"):
        if (file := folder / name).is_file():
            check_schema(TokenIds, {"tokens": _read_small(file)}, str(file))
    if (file := folder / TOKENIZER_CONFIG).is_file():
        refuse_tokenizer_code(check_schema(TokenizerConfig, _read_small(file), str(file)), file)


def refuse_tokenizer_code(config: TokenizerConfig, file: Path) -> None:
    """Refuses a tokenizer class that comes as code of the folder: such code is never run.

    A class that transformers has is transformers' own, whatever `auto_map` brings.

    Raises:
        InputError: `auto_map` names a tokenizer, and transformers has no class of that name.
    """
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    code = config.auto_map.get("AutoTokenizer") if isinstance(config.auto_map, dict) else config.auto_map
    named = config.tokenizer_class or ""
    if code and tokenizer_class_from_name(named) is None:
        raise InputError(
            f"{file}: auto_map: tokenizer class {named!r} comes with code of its own ({shown(code)}), which "
            "is never run; expected a tokenizer class that the installed transformers has"
        )


def _read_small(file: Path) -> dict[str, Any]:
    return read_json_object(file, max_bytes=MAX_SMALL_FILE_BYTES)
