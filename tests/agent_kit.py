"""Templates, tokenizers and models for tests of the agent loop."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken

from nodes import tokens
from nodes.agent.fixed_base import FixedBaseTemplate
from nodes.agent.folder import jinja_render
from nodes.agent.records import ToolSpec
from nodes.agent.rendered import PlainTokenizer, RenderedTemplate, make_renderer
from nodes.tasks import Generation, Sampling
from nodes.train_tokenizer import train

Ids = npt.NDArray[np.int32]
VOCABULARY = tokens.load()
END = "<|im_end|>"
ADD = ToolSpec(
    "add",
    "Add two integers.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
)
# What the chat template of Qwen3 does with text messages and tools, in our own words.
QWEN3 = """
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and ' }}
{{- 'arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(query=messages | length - 1, open=true) %}
{%- for message in messages[::-1] %}
{%- if last.open and message.role == 'user' %}
{%- set last.query = messages | length - loop.index %}{%- set last.open = false %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- set thought = message.reasoning_content or '' %}
{%- if loop.index0 > last.query and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + message.content.lstrip('\\n') }}
{%- else %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# A template of no known family: no newline after a turn, tools and calls as plain JSON.
ODD = """
{%- for message in messages -%}
[{{ message.role }}|{{ message.content }}
{%- for call in message.tool_calls or [] -%}{{ call | tojson }}{%- endfor -%}]<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}[assistant|{%- endif -%}
"""
# A template that numbers its turns: nothing can be appended to what it wrote before.
COUNTING = """
{%- for message in messages -%}
{{ messages | length }} {{ message.role }}: {{ message.content }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}assistant:{%- endif -%}
"""


def qwen_tokenizer() -> Any:
    """Return a tokenizer with the special tokens of Qwen3."""
    texts = [str(number) for number in range(200)] + [ADD.description, QWEN3, "user assistant"] * 3
    tokenizer = train(iter(texts), 600)
    special = ("<tools>", "</tools>", "<tool_response>", "</tool_response>")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in special])
    return tokenizer


def qwen_folder(folder: Path, template: str = QWEN3) -> Path:
    """Write a tokenizer and a chat template as a model's folder."""
    folder.mkdir(exist_ok=True)
    qwen_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


class Watched:
    """A tokenizer that notes every text that is encoded."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Any:
        self.encoded.append(text)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def fixed_base(template: str, tokenizer: Any) -> FixedBaseTemplate:
    end = tokenizer.token_to_id(END)
    render = jinja_render(template, tokenizer, {"eos_token": END})
    return FixedBaseTemplate(
        render, lambda ids: tokenizer.decode(ids, skip_special_tokens=False), [end]
    )


def rendered(name: str, tokenizer: Any) -> RenderedTemplate:
    end = tokenizer.token_to_id(END)
    return RenderedTemplate(make_renderer(name, PlainTokenizer(tokenizer, end, "test")))


def generation(
    ids: Any, finish_reason: Any = "stop", version: int = 0, **fields: Any
) -> Generation:
    """Return a completion whose log-probabilities differ from token to token."""
    token_ids = np.array(ids, dtype=np.int32)
    logprobs = -np.linspace(0.1, 1.0, len(token_ids), dtype=np.float32)
    spans = np.array([[0, len(token_ids), version]], dtype=np.int32)[: len(token_ids)]
    return Generation(token_ids, logprobs, finish_reason, spans, **fields)


class ScriptedModel:
    """A model that says what a test wrote, and keeps what it was asked.

    Each entry is a text, a Generation, or an exception; a text longer than max_tokens is cut off.
    """

    def __init__(self, *says: Any, encode: Any = VOCABULARY.encode_marked) -> None:
        self.says = list(says)
        self.encode = encode
        self.prompts: list[Ids] = []
        self.samplings: list[Sampling] = []
        self.released: list[str] = []

    async def generate(self, session: str, token_ids: Ids, sampling: Sampling) -> Generation:
        self.prompts.append(token_ids)
        self.samplings.append(sampling)
        said = self.says.pop(0)
        if isinstance(said, BaseException):
            raise said
        if isinstance(said, Generation):
            return said
        if not isinstance(said, str):
            return await said(session, token_ids, sampling)  # type: ignore[no-any-return]
        ids = self.encode(said)
        if len(ids) > sampling.max_tokens:
            return generation(ids[: sampling.max_tokens], "length")
        return generation(ids, version=len(self.prompts))

    async def release(self, session: str) -> None:
        self.released.append(session)


def context(model: Any, payload: dict[str, Any] | None = None) -> Any:
    """Return a context whose `used` adds up what was spent."""
    used = {"turns": 0, "tokens": 0}

    def spent(*, turns: int = 0, tokens: int = 0) -> None:
        used["turns"] += turns
        used["tokens"] += tokens

    return SimpleNamespace(
        task=SimpleNamespace(payload=payload or {}),
        rollout_id="r",
        attempt=2,
        data={},
        arrays={},
        trajectory=None,
        model=model,
        used=used,
        spent=spent,
    )


def call(name: str, **arguments: Any) -> str:
    """Return a tool call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
