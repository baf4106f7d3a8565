"""What every task kind with a conversation says about it: limits, sampling, template, tools.

    "talk": {"turns": 16, "max_tokens": 1024, "temperature": 1.0, "tools": ["bash", "submit"]}

Job: these fields once for all kinds; tools made for a conversation and closed after it.
Does not know: what is asked, or what an answer is worth.
Invariants: tools that need a sandbox get the attempt's own; everything that was started here is
closed on every path.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from engine.errors import BoundaryError
from engine.typed import AtLeast, Mismatch, Text, compile_decoder

from .. import tokens
from ..agent import ChatmlTemplate, Limits, Message, Result, Template, Tool, converse
from ..sandboxes.contract import Sandbox, Spec
from ..tools.bash import Bash, BashSettings
from ..tools.editor import Editor
from ..tools.ipython import IPython
from ..tools.plain import THINK, Submit
from ..tools.search import make_search, search_tool
from . import Context, Output, Sampling

ToolName = Literal["bash", "ipython", "editor", "search", "submit", "think"]
IN_SANDBOX = frozenset({"bash", "ipython", "editor"})
Payload = TypeVar("Payload")


@dataclass(frozen=True, slots=True)
class Talk:
    """How a conversation is held; every field may be left out."""

    turns: Annotated[int, AtLeast(1), "of the model, at most"] = 16
    max_tokens: Annotated[int, AtLeast(1), "to sample in each turn"] = 1024
    context_tokens: Annotated[int, AtLeast(2), "prompt and completion together"] = 8192
    temperature: Annotated[float, AtLeast(0), "of sampling"] = 1.0
    wall_s: Annotated[float, AtLeast(1), "seconds for the conversation"] = 300.0
    template: Annotated[Text, "a model's folder; empty for rollmq's own tokenizer"] = ""
    renderer: Annotated[Text, "of the package renderers; empty for the folder's template"] = ""
    tools: Annotated[tuple[ToolName, ...], "what the model may call"] = ()
    search: Annotated[Text, "corpus:FILE or http:URL; empty: no search"] = ""
    image: Annotated[Text, "of the sandbox; empty for the provider's default"] = ""

    @property
    def needs_sandbox(self) -> bool:
        """Whether one of the tools lives in a sandbox."""
        return bool(IN_SANDBOX.intersection(self.tools))

    def limits(self) -> Limits:
        """Return the loop's limits."""
        return Limits(
            turns=self.turns,
            turn_tokens=self.max_tokens,
            tokens=self.turns * self.max_tokens,
            context_tokens=self.context_tokens,
            wall_s=self.wall_s,
        )

    def make_template(self) -> Template:
        """Return the template of the model that is talked to."""
        if not self.template:
            return ChatmlTemplate(tokens.load())
        from ..agent.folder import load_template  # noqa: PLC0415 - renderers takes half a second

        return load_template(self.template, self.renderer)


@dataclass(slots=True)
class Toolset:
    """The tools of one conversation; `submit` if it is among them."""

    tools: list[Tool] = field(default_factory=list)
    submit: Submit | None = None


def payload_reader(record: type[Payload]) -> Callable[[dict[str, Any]], Payload]:
    """Return a function from a task's payload to a record.

    The function raises BoundaryError("handler") naming the field at fault, without retry.
    """
    decode = compile_decoder(record)

    def read(payload: dict[str, Any]) -> Payload:
        try:
            return decode(payload)
        except Mismatch as wrong:
            raise BoundaryError("handler", f"payload: {wrong}", retry=False) from None

    return read


@asynccontextmanager
async def own_sandbox(context: Context, talk: Talk) -> AsyncIterator[Sandbox | None]:
    """Start a sandbox for the conversation's tools, if one of them needs it; stop it after.

    Raises: BoundaryError("sandbox").
    """
    if not talk.needs_sandbox:
        yield None
        return
    sandbox = await context.sandbox(Spec(image=talk.image))
    try:
        yield sandbox
    finally:
        await sandbox.stop()


def opening(system: str, user: str) -> Output:
    """Return what init leaves: (role, text) pairs that open the conversation."""
    return Output(data={"messages": [("system", system), ("user", user)]})


@asynccontextmanager
async def toolset(
    talk: Talk, sandbox: Sandbox | None, workdir: str = "/work"
) -> AsyncIterator[Toolset]:
    """Make a conversation's tools, and close them after it.

    Raises: BoundaryError("handler"), without retry, if search is asked for and not configured.
    """
    made = Toolset()
    async with AsyncExitStack() as stack:
        for name in talk.tools:
            made.tools.append(_tool(name, talk, sandbox, workdir, made, stack))
        yield made


def _tool(
    name: ToolName,
    talk: Talk,
    sandbox: Sandbox | None,
    workdir: str,
    made: Toolset,
    stack: AsyncExitStack,
) -> Tool:
    match name:
        case "think":
            return THINK
        case "submit":
            made.submit = Submit()
            return made.submit.tool
        case "search":
            search = make_search(talk.search)
            if search is None:
                why = "the tool search is asked for, and talk.search is empty"
                raise BoundaryError("handler", why, retry=False)
            return search_tool(search)
    assert sandbox is not None, "the caller starts a sandbox where needs_sandbox says so"
    if name == "editor":
        return Editor(sandbox, workdir).tool
    tool = Bash(sandbox, BashSettings(workdir=workdir)) if name == "bash" else IPython(sandbox)
    stack.push_async_callback(tool.close)
    return tool.tool


async def hold(context: Context, talk: Talk, tools: list[Tool]) -> Result:
    """Hold the conversation that init opened.

    Raises: BoundaryError as `nodes.agent.converse`.
    """
    messages = [Message(role, text) for role, text in context.data["init"]["messages"]]
    sampling = Sampling(temperature=talk.temperature)
    template = talk.make_template()
    return await converse(context, template, tools, talk.limits(), messages, sampling=sampling)
