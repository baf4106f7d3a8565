"""A model's folder: its tokenizer and chat template, as Hugging Face lays them out.

    tokenizer.json, tokenizer_config.json, and chat_template.jinja where the configuration has none

Job: choose how to render for a model: a renderer of the package `renderers` if one writes exactly
what the folder's own template writes, else the template itself by the fixed-base method.
Does not know: weights, or the package transformers.
Invariants: a renderer is chosen for what it does with this tokenizer, never for the model's name.
Templates run in a sandbox and cannot change what they are given.
"""

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import orjson
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from .fixed_base import FixedBaseTemplate, Render
from .openai_form import Form, message_forms, tool_forms
from .records import Message, ToolCall, ToolSpec
from .template import Template

FIXED_BASE = "fixed-base"
_PROBE_TOOL = ToolSpec("look", "Look a word up.", {"type": "object", "properties": {}})
_PROBES: tuple[tuple[list[Message], list[ToolSpec]], ...] = (
    ([Message("user", "Why?")], []),
    ([Message("system", "Be brief."), Message("user", "Why <b>?")], [_PROBE_TOOL]),
    (
        [
            Message("system", "Be brief."),
            Message("user", "Why?"),
            Message("assistant", "I look.", calls=(ToolCall("look", {"word": "why"}),)),
            Message("tool", "because", name="look"),
        ],
        [_PROBE_TOOL],
    ),
)


@cache
def load_template(folder: str, renderer: str = "") -> Template:
    """Return the template of a model's folder; the same object at every call.

    `renderer` names one of the package renderers, or `fixed-base`; empty chooses.

    Raises: ValueError if the folder has no chat template, or if that renderer does not fit;
    OSError if a file cannot be read.
    """
    from .rendered import RenderedTemplate  # noqa: PLC0415 - half a second that few need

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    config = orjson.loads((Path(folder) / "tokenizer_config.json").read_bytes())
    end_ids = _end_ids(Path(folder), tokenizer, config)
    if renderer not in {"", FIXED_BASE}:
        return RenderedTemplate(_renderer(renderer, tokenizer, end_ids[0], folder))
    render = jinja_render(_chat_template(Path(folder), config), tokenizer, config)
    found = None if renderer else _matching(render, tokenizer, end_ids[0], folder)
    return found or FixedBaseTemplate(
        render, lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)), end_ids
    )


def jinja_render(template: str, tokenizer: Any, config: dict[str, Any]) -> Render:
    """Return a chat template in Jinja as a function to token IDs; `config` names special tokens.

    Raises: ValueError if it does not parse.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: _text(config[name]) for name in names if config.get(name)}
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as wrong:
        raise ValueError(f"the chat template does not parse: {wrong}") from None

    def render(messages: list[Form], tools: list[Form] | None, *, asks: bool) -> list[int]:
        try:
            text = compiled.render(
                messages=messages, tools=tools, add_generation_prompt=asks, **special
            )
        except (jinja2.TemplateError, TypeError) as wrong:
            raise ValueError(f"the chat template refuses the messages: {wrong}") from None
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return render


def _renderer(name: str, tokenizer: Any, end_id: int, folder: str) -> Any:
    from .rendered import PlainTokenizer, make_renderer  # noqa: PLC0415 - as above

    return make_renderer(name, PlainTokenizer(tokenizer, end_id, folder))


def _matching(render: Render, tokenizer: Any, end_id: int, folder: str) -> Template | None:
    from .rendered import RenderedTemplate, renderer_names  # noqa: PLC0415 - as above

    for name in renderer_names():
        try:
            template = RenderedTemplate(_renderer(name, tokenizer, end_id, folder))
            if _is_same(template, render):
                return template
        except Exception:  # noqa: BLE001, S112 - a renderer of another family may raise anything
            continue
    return None


def _is_same(template: Template, render: Render) -> bool:
    return all(
        template.opening(messages, tools).tolist()
        == render(message_forms(messages), tool_forms(tools), asks=True)
        for messages, tools in _PROBES
    )


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each["name"]: each["template"] for each in found}
        found = named.get("tool_use") or named.get("default")
    if not found:
        raise ValueError(f"{folder} has no chat template")
    return str(found)


def _end_ids(folder: Path, tokenizer: Any, config: dict[str, Any]) -> tuple[int, ...]:
    """Return the tokens that end a turn: the configuration's first, then those of generation."""
    text = _text(config.get("eos_token"))
    first = tokenizer.token_to_id(text) if text else None
    if first is None:
        raise ValueError(f"{folder}: tokenizer_config.json names no eos_token of this tokenizer")
    file = folder / "generation_config.json"
    more = orjson.loads(file.read_bytes()).get("eos_token_id", []) if file.exists() else []
    ids = [first, *(more if isinstance(more, list) else [more])]
    return tuple(dict.fromkeys(number for number in ids if isinstance(number, int)))


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
