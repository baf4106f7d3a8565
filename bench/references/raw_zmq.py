"""Reference: bare pyzmq, a broker that only forwards, five processes over ipc.

    client DEALER - ROUTER broker DEALER - DEALER worker    (one DEALER a stage)

A message is [client id, header, body] inside and [header, body] at the client. Nothing is kept,
leased or acknowledged: a process that dies loses what it held.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import zmq

from bench.measure import Meter, ReferenceResult
from bench.processes import Children, children
from bench.references import main
from bench.workload import HEADER, check, evaluate, init, pack, unpack
from bench.workload import run as run_stage

NAME = "raw_zmq"
HIGH_WATER_MARK = 10_000  # messages; in_flight bounds them long before
ANSWER_S = 20.0


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the reference for `seconds` after its warm-up.

    Raises:
        CandidateError: a process died or stopped answering.
        WrongRolloutError: a rollout arrived that nobody asked for.

    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        calls = {
            "broker": (_broker, (folder,)),
            "init": (_worker, (folder, "init", tokens)),
            "run": (_worker, (folder, "run", tokens)),
            "eval": (_worker, (folder, "eval", tokens)),
        }
        with children(NAME, calls) as held:
            return _client(folder, held, seconds, in_flight, tokens)


def _socket(kind: int, *, timeout_ms: int = -1) -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(kind)
    socket.set_hwm(HIGH_WATER_MARK)
    socket.linger = 0
    socket.rcvtimeo = timeout_ms
    return socket


def _address(folder: str, end: str) -> str:
    return f"ipc://{Path(folder) / end}"


def _client(
    folder: str, held: Children, seconds: float, in_flight: int, tokens: int
) -> ReferenceResult:
    socket = _socket(zmq.DEALER, timeout_ms=int(ANSWER_S * 1e3))
    socket.connect(_address(folder, "client"))
    try:
        _submit(socket, 0)
        _receive(socket, tokens, {0})
        return _measure(socket, Meter(NAME, seconds), in_flight, tokens)
    except zmq.Again as error:
        raise held.failure(f"no answer for {ANSWER_S} s") from error
    finally:
        socket.close()


def _measure(
    socket: zmq.Socket[bytes], meter: Meter, in_flight: int, tokens: int
) -> ReferenceResult:
    started = {}
    for task_id in range(in_flight):
        started[task_id] = perf_counter()
        _submit(socket, task_id)
    task_id = in_flight
    while meter.finished(started.pop(_receive(socket, tokens, started))):
        started[task_id] = perf_counter()
        _submit(socket, task_id)
        task_id += 1
    return meter.result()


def _submit(socket: zmq.Socket[bytes], task_id: int) -> None:
    socket.send_multipart([HEADER.pack(task_id, 0.0), b""])


def _receive(socket: zmq.Socket[bytes], tokens: int, expected: object) -> int:
    header, body = socket.recv_multipart(copy=False)
    task_id, reward = HEADER.unpack(header.buffer)
    check(task_id, unpack(body.buffer), reward, tokens)
    return int(task_id)


def _broker(folder: str) -> None:
    ends = {name: _socket(zmq.DEALER) for name in ("init", "run", "eval")}
    ends["client"] = _socket(zmq.ROUTER)
    poller = zmq.Poller()
    for name, socket in ends.items():
        socket.bind(_address(folder, name))
        poller.register(socket, zmq.POLLIN)
    route = {
        ends["client"]: (ends["init"], True),
        ends["init"]: (ends["run"], True),
        ends["run"]: (ends["eval"], False),
        ends["eval"]: (ends["client"], False),
    }
    while True:
        for socket, _ in poller.poll():
            _forward(socket, *route[socket])


def _forward(source: zmq.Socket[bytes], target: zmq.Socket[bytes], copy: bool) -> None:
    try:
        while True:
            target.send_multipart(source.recv_multipart(zmq.NOBLOCK, copy=copy), copy=copy)
    except zmq.Again:
        return


def _worker(folder: str, stage: str, tokens: int) -> None:
    socket = _socket(zmq.DEALER)
    socket.connect(_address(folder, stage))
    work = {"init": _init, "run": _run, "eval": _eval}[stage]
    while True:
        work(socket, tokens)


def _init(socket: zmq.Socket[bytes], _tokens: int) -> None:
    client, header, _ = socket.recv_multipart()
    task_id, _ = HEADER.unpack(header)
    socket.send_multipart([client, header, init(task_id).tobytes()])


def _run(socket: zmq.Socket[bytes], tokens: int) -> None:
    client, header, prompt = socket.recv_multipart()
    trajectory = run_stage(np.frombuffer(prompt, np.int32), tokens)
    socket.send(client, zmq.SNDMORE)
    socket.send(header, zmq.SNDMORE)
    socket.send(pack(trajectory), copy=False)


def _eval(socket: zmq.Socket[bytes], _tokens: int) -> None:
    client, header, body = socket.recv_multipart(copy=False)
    token_ids = unpack(body.buffer).token_ids
    task_id, _ = HEADER.unpack(header.buffer)
    reward = evaluate(int(token_ids[0]), int(token_ids[-1]))
    socket.send(client, zmq.SNDMORE)
    socket.send(HEADER.pack(task_id, reward), zmq.SNDMORE)
    socket.send(body, copy=False)


if __name__ == "__main__":
    main(run)
