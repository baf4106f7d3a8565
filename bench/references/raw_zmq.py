"""Reference: bare pyzmq, a broker that only forwards, five processes over ipc.

    client DEALER - ROUTER broker DEALER - DEALER worker    (one DEALER a stage)

A message is [client id, header, body] inside and [header, body] at the client. Nothing is kept,
leased or acknowledged: a process that dies loses what it held. Small frames are copied and the
body travels as a frame; copying all, copying nothing, larger socket buffers and TCP were no faster.
"""

import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import zmq

from bench.measure import Meter, ReferenceResult
from bench.processes import Calls, Children, children
from bench.references import main
from bench.workload import HEADER, WrongRolloutError, check, evaluate, init, pack, unpack
from bench.workload import run as run_stage

NAME = "raw_zmq"
STAGES = ("init", "run", "eval")
HIGH_WATER_MARK = 10_000  # messages; in_flight bounds them long before
ANSWER_S = 20.0


def run(seconds: float, in_flight: int, tokens: int) -> ReferenceResult:
    """Measure the reference for `seconds` after its warm-up.

    Raises:
        CandidateError: a process died or stopped answering.
        WrongRolloutError: a rollout arrived that nobody asked for.

    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workers = {stage: (_worker, (folder, stage, tokens)) for stage in STAGES}
        calls: Calls = {"broker": (_broker, (folder,)), **workers}
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
        _receive(socket, tokens)
        return _measure(socket, Meter(NAME, seconds), in_flight, tokens)
    except zmq.Again as error:
        raise held.failure(f"no answer for {ANSWER_S} s") from error
    finally:
        socket.close()


def _measure(
    socket: zmq.Socket[bytes], meter: Meter, in_flight: int, tokens: int
) -> ReferenceResult:
    started = {task_id: _submit(socket, task_id) for task_id in range(in_flight)}
    task_id = in_flight
    while True:
        answered = _receive(socket, tokens)
        if answered not in started:
            raise WrongRolloutError(f"task {answered} arrived, but is not under way")
        if not meter.finished(started.pop(answered)):
            return meter.result()
        started[task_id] = _submit(socket, task_id)
        task_id += 1


def _submit(socket: zmq.Socket[bytes], task_id: int) -> float:
    started = perf_counter()
    socket.send_multipart([HEADER.pack(task_id, 0.0), b""])
    return started


def _receive(socket: zmq.Socket[bytes], tokens: int) -> int:
    header = socket.recv()
    body = socket.recv(copy=False)
    task_id, reward = HEADER.unpack(header)
    check(task_id, unpack(body.buffer), reward, tokens)
    return int(task_id)


def _broker(folder: str) -> None:
    stages = [_socket(zmq.DEALER) for _ in STAGES]
    clients = _socket(zmq.ROUTER)
    poller = zmq.Poller()
    for end, socket in zip(("client", *STAGES), (clients, *stages), strict=True):
        socket.bind(_address(folder, end))
        poller.register(socket, zmq.POLLIN)
    route = dict(zip((clients, *stages), (*stages, clients), strict=True))
    while True:
        for socket, _ in poller.poll():
            _forward(socket, route[socket])


def _forward(source: zmq.Socket[bytes], target: zmq.Socket[bytes]) -> None:
    while True:
        try:
            client = source.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        header = source.recv()
        body = source.recv(copy=False)
        _send(target, client, header, body)


def _send(target: zmq.Socket[bytes], client: bytes, header: bytes, body: bytes | zmq.Frame) -> None:
    target.send(client, zmq.SNDMORE)
    target.send(header, zmq.SNDMORE)
    target.send(body, copy=False)


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
    _send(socket, client, header, pack(trajectory))


def _eval(socket: zmq.Socket[bytes], _tokens: int) -> None:
    client, header = socket.recv(), socket.recv()
    body = socket.recv(copy=False)
    token_ids = unpack(body.buffer).token_ids
    task_id, _ = HEADER.unpack(header)
    reward = evaluate(int(token_ids[0]), int(token_ids[-1]))
    _send(socket, client, HEADER.pack(task_id, reward), body)


if __name__ == "__main__":
    main(run)
