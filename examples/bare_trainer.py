"""A trainer from docs/protocol.md alone: python examples/bare_trainer.py RUN_DIR TASKS.jsonl."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import zmq

HELLO = {"client_id": "bare-trainer", "window": 64}
endpoint = json.loads(Path(sys.argv[1], "address.json").read_text())["endpoints"]["front"]
socket = zmq.Context.instance().socket(zmq.DEALER)
socket.connect(endpoint)


def send(kind: str, header: dict, *body: bytes) -> None:
    socket.send_multipart([f"rollmq/1 {kind}".encode(), json.dumps(header).encode(), *body])


def receive() -> tuple[str, dict, dict]:
    while not socket.poll(1000):
        if time.monotonic() > heard + 60:
            sys.exit(f"heard nothing from {endpoint} for a minute")
        send("ping", {"nonce": 0})  # a broker that has restarted answers that it wants a hello
    kind, text, *frames = socket.recv_multipart()
    header, body, arrays = json.loads(text), b"".join(frames), {}
    for each in header.get("buffers", ()):
        dtype = np.dtype(each["dtype"].replace("json", "uint8"))  # json is text, in bytes
        arrays[each["name"]] = np.frombuffer(body, dtype, int(np.prod(each["shape"])))
        body = body[arrays[each["name"]].nbytes :]
    return kind.split()[1].decode(), header, arrays


submits, owed, rewards, heard = [], set(), [], time.monotonic()
for task in map(json.loads, Path(sys.argv[2]).read_text().splitlines()):
    text, group = json.dumps(task["payload"]).encode(), f"{task['task_id']}-{time.time_ns()}"
    names = [f"{group}-{member}" for member in range(4)]
    header = {"task_id": task["task_id"], "task_kind": task["kind"], "rollout_ids": names}
    header |= {"buffers": [{"name": "task", "dtype": "json", "shape": [len(text)]}]}
    submits.append((header | {"submit_id": group, "group_id": group}, text))
    owed.update(names)
send("hello", HELLO)
while owed:
    (kind, header, arrays), heard = receive(), time.monotonic()
    if header.get("code") == "hello_first":
        send("hello", HELLO)
    elif kind in ("welcome", "credit"):  # what the broker knows already it does not start again
        for submit, text in submits:
            send("submit", submit, text)
    elif kind == "result":
        if header["rollout_id"] in owed and header["trainable"]:  # a failure is never a reward of 0
            rewards.append(header["reward"])  # learn(arrays["token_ids"], arrays["loss_mask"], ...)
        owed.discard(header["rollout_id"])
        send("ack", {"seqs": [[header["seq"], header["seq"]]], "window": HELLO["window"]})
    elif kind not in ("accepted", "pong") and header.get("code") != "full":
        sys.exit(f"{kind}: {header}")
send("goodbye", {})
socket.close(linger=1000)
print(f"{sum(rewards) / max(1, len(rewards)):.3f} mean reward of {len(rewards)} rollouts")
