"""Golden frames: one file per message kind, which pin version 1 of the wire format.

    python -m tests.golden_kit

writes a file for each kind of `SAMPLES` that has none. A file that exists is never written again:
frames that were valid stay valid for as long as the version is 1. In a file, frames 0 and 1 are
text and body frames are hexadecimal.
"""

import json
from pathlib import Path
from typing import Any

import orjson

from engine import messages as m
from engine.records import Buffer, Failure, Receipt, StageTiming, Usage
from engine.sampling import BatchReport, Sealed, Spec, Tally
from engine.wire import encode, write_json

DIRECTORY = Path(__file__).parent / "golden"

TASK = (Buffer("task", "json", (17,)), b'{"question": "?"}')
BODY = [
    (Buffer("run", "json", (2,)), b"{}"),
    (Buffer("token_ids", "int32", (3,)), bytes.fromhex("01000000 ff000000 ffffff7f")),
    (Buffer("loss_mask", "uint8", (3,)), bytes.fromhex("00 01 01")),
    (Buffer("logprobs", "float32", (3,)), bytes.fromhex("00000000 0000003f 0000c0bf")),
    (Buffer("policy_spans", "int32", (1, 3)), bytes.fromhex("01000000 03000000 07000000")),
    (Buffer("times", "float64", (2, 0)), b""),
    (Buffer("count", "int64", ()), bytes.fromhex("feffffffffffffff")),
]
BUFFERS, FRAMES = tuple(buffer for buffer, _ in BODY), [frame for _, frame in BODY]
USAGE = Usage(2, 64, 1.25)
FAILURE = Failure("run", 1, "sandbox", "TimeoutError", "no answer", "run-0")
TIMING = StageTiming("run", 2, "run-0", 0.5, 1.5, 1.25)
RECEIPT = Receipt("r-1", "run", running=True, usage=USAGE)
SPEC = Spec(
    *(32, 8, "reward-bounds", {"low": 0.1}, "carry", 1, 7, "refill", 2),
    stop_early=True,
    margin=1.5,
    in_flight=256,
)
REPORT = BatchReport(Tally(2, 16, 4096, 31.5, 16, 6.5), stopped_early=1, refilled=3, seconds=4.5)
BATCH = Sealed(2, "ended", "no more prompts", (3, 7), ("g-3-1",), ("g-7-0",), REPORT, last=True)
QUESTION = (Buffer("question", "json", (15,)), b'{"ask": "list"}')
ANSWER = (Buffer("answer", "json", (2,)), b"[]")
PART = m.Part("sim-0", "open", {"sessions": 2.0})
TOPOLOGY = (Buffer("topology", "json", (17,)), b'"version: 1\\n..."')
STATUS = (Buffer("status", "json", (2,)), b"{}")

SAMPLES: tuple[tuple[Any, list[bytes]], ...] = (
    (m.Hello("trainer-0", 256), []),
    (m.Submit("s-1", "g-1", "t-1", "math", ("r-1", "r-2"), (TASK[0],), 2, -1, "a", 4), [TASK[1]]),
    (m.Ack(((1, 3), (5, 5)), 256, ((6, 9),)), []),
    (m.Cancel("c-1", ("r-1",), ("g-2",), everything=False), []),
    (m.Sample("a", SPEC, 2, "failed", 40, "ValueError: no such file", again=True), []),
    (m.EndSample("a"), []),
    (m.StatusRequest("q-1"), []),
    (m.AskNode("q-2", "router", (QUESTION[0],)), [QUESTION[1]]),
    (m.Ping(7), []),
    (m.Goodbye(), []),
    (m.Welcome("broker-1", ("init", "run", "eval"), 2.0, 67108864, 1024, 256, 3, 41), []),
    (m.Accepted("s-1", ("r-2",)), []),
    (m.Refusal("s-1", "full", "100000 rollouts are held"), []),
    (m.Credit(12, 4096), []),
    (
        m.Result(
            *(42, "r-1", "g-1", 2, "t-1", "completed", 1.0, {"exact": 1.0}, True),
            failures=(FAILURE,),
            timings=(TIMING,),
            total_s=2.5,
            receipt=RECEIPT,
            policy_version=7,
            sampling_id="a",
            prompt=4,
            buffers=BUFFERS,
        ),
        FRAMES,
    ),
    (m.Wanted("a", 24, 17, 2, ((9, 5),)), []),
    (m.Judged("a", ((4, "dropped"), (5, "stale"))), []),
    (m.Batch("a", BATCH, final=False), []),
    (m.Cancelled("c-1", (RECEIPT,), ("r-0",), ("g-2",)), []),
    (m.Status("q-1", (STATUS[0],)), [STATUS[1]]),
    (m.NodeAnswer("q-2", "done", "", (ANSWER[0],)), [ANSWER[1]]),
    (m.Pong("broker-1", 7, 0), []),
    (m.Replaced("trainer-0"), []),
    (m.Problem("refused", "rollout_ids.0", "expected a string, got an integer"), []),
    (m.WorkerHello("run-0-1", "run-0", "local", "run", 64, 268435456, (("r-1", 2),)), []),
    (m.Heartbeat("run-0-1", (("r-1", 2),), 0.0), []),
    (m.WorkerCredit("run-0-1", 0, 0), []),
    (m.WorkerLost("run-0-1", "r-1", "Blocked", "its handler was not over in time"), []),
    (m.WorkerGoodbye("run-0-1"), []),
    (m.NodeHello("sim-0-1", "sim-0", "backend", "local", {"running": 3.0}, (PART,)), []),
    (m.Answered("trainer-0", "q-2", "done", "", (ANSWER[0],)), [ANSWER[1]]),
    (m.Announced("router", "policy_version", 7), []),
    (m.LauncherReply("broker-1", 3, (PART,), (TOPOLOGY[0],)), [TOPOLOGY[1]]),
    (m.Asked("trainer-0", "q-2", (QUESTION[0],)), [QUESTION[1]]),
    (m.Pins("sandboxes-0", "local", ("r-1", "r-2")), []),
    (m.Unpinned("broker-1", ("r-2",)), []),
    (m.WorkerWelcome("broker-1", "ipc:///run/s/w-run-0-1", (("r-9", 1),)), []),
    (m.HeartbeatReply("broker-1", (("r-9", 1),)), []),
    (m.HelloAgain("broker-1"), []),
    (m.ResultAck((("r-1", 2),)), []),
    (
        m.Work("broker-1", "r-1", "g-1", "t-1", "math", "run", 2, 600.0, (TASK[0], *BUFFERS)),
        [TASK[1], *FRAMES],
    ),
    (
        m.StageResult(
            *("run-0-1", "r-1", "run", 2, "failed", 1.25),
            outcome="truncated",
            final=True,
            pinned=True,
            reward=0.5,
            rewards={"exact": 0.5},
            trainable=False,
            failure=FAILURE,
            retry=False,
            usage=USAGE,
            buffers=BUFFERS,
        ),
        FRAMES,
    ),
    (m.Boot("broker-1"), []),
    (m.Stop((("r-1", 2),)), []),
)


def golden(record: Any, body: list[bytes]) -> dict[str, Any]:
    """Return what a golden file holds."""
    first, header, *frames = encode(record, body)
    return {
        "kind": record.kind,
        "record": orjson.loads(write_json(record)),
        "frames": [first.decode(), header.decode(), *(bytes(frame).hex() for frame in frames)],
    }


def main() -> None:
    """Write the files that are missing."""
    DIRECTORY.mkdir(exist_ok=True)
    for record, body in SAMPLES:
        path = DIRECTORY / f"{record.kind}.json"
        if not path.exists():
            path.write_text(json.dumps(golden(record, body), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
