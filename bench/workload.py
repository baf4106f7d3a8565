"""The three stages that do nothing, the same for rollmq and for every reference.

init yields a small prompt, run yields the arrays of a trajectory, eval reads them and yields a
reward. Each array is new for each rollout, and its ends depend on the task, so nobody can send
one prepared answer twice: `check` would notice.

Packed, for those who send bytes:

    [task_id int64, reward float64]  [token_ids int32 * n]  [logprobs float32 * n]  [mask uint8 * n]
"""

import struct
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

TOKENS = 8192
IN_FLIGHT = 256
PROMPT_TOKENS = 64
BYTES_PER_TOKEN = 9
HEADER = struct.Struct("<qd")


class WrongRolloutError(Exception):
    """A candidate delivered something other than what the stages made: it is broken."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """token_ids int32 (n,), logprobs float32 (n,), loss_mask uint8 (n,)."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    loss_mask: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Lists:
    """The same as Python lists, as a client has them that parsed JSON and stopped there."""

    token_ids: list[int]
    logprobs: list[float]
    loss_mask: list[int]


def init(task_id: int) -> NDArray[np.int32]:
    """Return the task's prompt, int32 (PROMPT_TOKENS,)."""
    return np.full(PROMPT_TOKENS, task_id, np.int32)


def run(prompt: NDArray[np.int32], tokens: int) -> Trajectory:
    """Return a new trajectory of `tokens` tokens that begins with the prompt."""
    template = _template(tokens)
    token_ids = template.token_ids.copy()
    token_ids[:PROMPT_TOKENS] = prompt
    token_ids[-1] = prompt[0] + 1
    return Trajectory(token_ids, template.logprobs.copy(), template.loss_mask.copy())


@cache
def _template(tokens: int) -> Trajectory:
    rng = np.random.default_rng(tokens)
    loss_mask = np.ones(tokens, np.uint8)
    loss_mask[:PROMPT_TOKENS] = 0
    logprobs = -rng.random(tokens, np.float32)
    return Trajectory(rng.integers(0, 150_000, tokens, np.int32), logprobs, loss_mask)


def evaluate(first_token: int, last_token: int) -> float:
    """Return the reward of a trajectory with these ends."""
    return float((first_token + last_token) % 7)


def pack(trajectory: Trajectory) -> bytes:
    """Return the three arrays as one buffer of 9 n bytes."""
    ids, logprobs, mask = trajectory.token_ids, trajectory.logprobs, trajectory.loss_mask
    return b"".join((ids.data, logprobs.data, mask.data))


def unpack(body: bytes | memoryview) -> Trajectory:
    """Return views of the three arrays in a packed body.

    Raises:
        WrongRolloutError: the body is not a whole number of tokens.

    """
    tokens, rest = divmod(len(body), BYTES_PER_TOKEN)
    if rest:
        raise WrongRolloutError(f"{len(body)} bytes are not a whole number of tokens")
    return Trajectory(
        np.frombuffer(body, np.int32, tokens),
        np.frombuffer(body, np.float32, tokens, 4 * tokens),
        np.frombuffer(body, np.uint8, tokens, 8 * tokens),
    )


def check(task_id: int, trajectory: Trajectory | Lists, reward: float, tokens: int) -> None:
    """Make sure that a delivered rollout is the one that the stages made for `task_id`.

    Raises:
        WrongRolloutError: a length, a dtype, an end of an array or the reward is another one.

    """
    ids, logprobs, mask = trajectory.token_ids, trajectory.logprobs, trajectory.loss_mask
    if not len(ids) == len(logprobs) == len(mask) == tokens:
        raise WrongRolloutError(f"task {task_id}: {len(ids)}, {len(logprobs)}, {len(mask)}")
    if isinstance(trajectory, Trajectory):
        dtypes = tuple(array.dtype for array in (ids, logprobs, mask))
        if dtypes != (np.int32, np.float32, np.uint8):
            raise WrongRolloutError(f"task {task_id}: {dtypes}")
    template = _template(tokens)
    ends = tuple(map(np.float32, (logprobs[0], logprobs[-1])))
    found = (ids[0], ids[-1], *ends, mask[0], mask[-1], reward)
    ends = (template.logprobs[0], template.logprobs[-1])
    wanted = (task_id, task_id + 1, *ends, 0, 1, evaluate(task_id, task_id + 1))
    if found != wanted:
        raise WrongRolloutError(f"task {task_id}: expected {wanted}, got {found}")
