"""A trainer written from docs/protocol.md with pyzmq and json, and nothing of rollmq."""

import json
import math
import struct
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

FORMATS = {"int32": "i", "int64": "q", "float32": "f", "float64": "d", "uint8": "B", "json": "B"}
DEADLINE_S = 15.0


class Message:
    """What came: the kind, the header's fields and the buffers, read."""

    def __init__(self, frames: list[bytes]) -> None:
        version, _, kind = frames[0].partition(b" ")
        assert version == b"rollmq/1"
        self.kind = kind.decode()
        self.header: dict[str, Any] = json.loads(frames[1])
        self.buffers = {}
        body = b"".join(frames[2:])
        for buffer in self.header.get("buffers", []):
            size = struct.calcsize(FORMATS[buffer["dtype"]]) * math.prod(buffer["shape"])
            self.buffers[buffer["name"]] = read(buffer, body[:size])
            body = body[size:]
        assert not body

    def __getitem__(self, field: str) -> Any:
        return self.header[field]


def read(buffer: dict[str, Any], frame: bytes) -> Any:
    """Return a JSON value, or an array's items in C order."""
    if buffer["dtype"] == "json":
        assert buffer["shape"] == [len(frame)]
        return json.loads(frame)
    count = 1
    for extent in buffer["shape"]:
        count *= extent
    return struct.unpack(f"<{count}{FORMATS[buffer['dtype']]}", frame)


class RawTrainer:
    """One connection to the broker of a run directory."""

    def __init__(self, run_dir: Path, client_id: str) -> None:
        book = json.loads((run_dir / "address.json").read_text())
        self.client_id = client_id
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._socket.setsockopt(zmq.RCVHWM, 1000)
        self._socket.connect(book["endpoints"]["front"])
        self._came: deque[Message] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=1000)

    def send(self, kind: str, header: dict[str, Any], *body: bytes) -> None:
        text = json.dumps(header).encode()
        self._socket.send_multipart([b"rollmq/1 " + kind.encode(), text, *body])

    def send_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self, *kinds: str, patience_s: float = DEADLINE_S) -> Message:
        """Return the next message of one of these kinds; others are kept for later."""
        for message in self._came:
            if message.kind in kinds:
                self._came.remove(message)
                return message
        give_up_at = time.monotonic() + patience_s
        while (left_s := give_up_at - time.monotonic()) > 0:
            if self._socket.poll(int(left_s * 1000)):
                message = Message(self._socket.recv_multipart())
                if message.kind in kinds:
                    return message
                self._came.append(message)
        raise AssertionError(f"no {kinds} came, but {[each.kind for each in self._came]}")

    def hello(self, window: int = 16) -> Message:
        self.send("hello", {"client_id": self.client_id, "window": window})
        return self.receive("welcome")

    def submit(
        self, submit_id: str, rollout_ids: list[str], kind: str, payload: Any, **changes: Any
    ) -> Message:
        task = json.dumps(payload).encode()
        header = {
            "submit_id": submit_id,
            "group_id": f"group of {submit_id}",
            "task_id": "t-1",
            "task_kind": kind,
            "rollout_ids": rollout_ids,
            "buffers": [{"name": "task", "dtype": "json", "shape": [len(task)]}],
        }
        self.send("submit", header | changes, task)
        answer = self.receive("accepted", "refused")
        assert answer["submit_id"] == submit_id
        return answer

    def ack(self, *seqs: int, window: int = 16) -> None:
        self.send("ack", {"seqs": [[seq, seq] for seq in seqs], "window": window})

    def unacked(self, nonce: int) -> int:
        self.send("ping", {"nonce": nonce})
        pong = self.receive("pong")
        assert pong["nonce"] == nonce
        count: int = pong["unacked"]
        return count

    def status(self) -> dict[str, Any]:
        self.send("status_request", {"request_id": "q"})
        report: dict[str, Any] = self.receive("status").buffers["status"]
        return report
