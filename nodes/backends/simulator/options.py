"""What topology.yaml may say under `options` of a simulator.

Job: name the options, and read them with errors that name the option at fault.
Does not know: what they are for. Invariants: options that were read fit together.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.errors import NodeFailed
from engine.typed import AtLeast, Count, Mismatch, compile_decoder

from .faults import Fault
from .schedule import Limits
from .stepping import StepTimes

ScriptName = Literal["text", "filler"]
Positive = Annotated[int, AtLeast(1)]


@dataclass(frozen=True, slots=True)
class Options:
    """The options, with their defaults; docs/backends.md explains them."""

    accuracy: Annotated[float, "the chance of a right answer, where the question is understood"] = (
        0.6
    )
    speed: Annotated[float, "divides every latency; 1 is of the order of one H100"] = 10.0
    seed: Annotated[int, "another one, other answers"] = 0
    script: Annotated[ScriptName, "who decides the text"] = "text"
    demonstrations: Annotated[str, "a file of turns, as `rollmq tasks` writes it"] = ""
    context_tokens: Annotated[int, AtLeast(2), "prompt and completion together"] = 8192
    cache_tokens: Annotated[Count, "keys and values held, in use or not"] = 262_144
    block_tokens: Annotated[Positive, "what the cache counts in"] = 16
    step_tokens: Annotated[Positive, "the most tokens computed in one step"] = 8192
    step_requests: Annotated[Positive, "the most requests computed in one step"] = 256
    step_base_ms: Annotated[float, "what every step takes"] = 5.75
    prefill_token_us: Annotated[float, "what a prompt token adds to a step"] = 17.25
    decode_sequence_us: Annotated[float, "what a sequence that decodes adds to a step"] = 6.0
    faults: Annotated[tuple[Fault, ...], "what goes wrong, and when"] = ()

    def limits(self) -> Limits:
        """Return the scheduler's limits."""
        blocks = self.cache_tokens // self.block_tokens
        return Limits(blocks, self.block_tokens, self.step_tokens, self.step_requests)

    def times(self) -> StepTimes:
        """Return the step loop's costs."""
        micro = self.prefill_token_us * 1e-6, self.decode_sequence_us * 1e-6
        return StepTimes(self.step_base_ms * 1e-3, *micro, self.speed)


def read_options(options: dict[str, object]) -> Options:
    """Return a simulator's options.

    Raises: NodeFailed, naming the option at fault.
    """
    try:
        found = compile_decoder(Options)(options)
    except Mismatch as wrong:
        raise NodeFailed(f"simulator options: {wrong}") from None
    if not found.limits().holds(found.context_tokens):
        sizes = f"cache_tokens ({found.cache_tokens}) and context_tokens ({found.context_tokens})"
        raise NodeFailed(f"simulator options: {sizes}: a request could never fit into the cache")
    return found
