"""A cancel ends generations on a real server: it runs nothing more, and the tokens are counted."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Client, Task

from ..topology_kit import Site, running_topology
from ..vllm_kit import metric
from .test_exactness import topology

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROLLOUTS = 6
PATIENCE_S = 120.0
STOPPED_S = 20.0  # from the call; a second on a machine that has time for it
UNSEEN_TOKENS = 4  # of one request: sampled ahead, when the abort came
ENDLESS = """\
from nodes import tokens
from nodes.tasks import Output, Sampling


async def init(context):
    return Output()


async def run(context):
    session = f"{context.rollout_id}.{context.attempt}"
    prompt = tokens.load().opening([("user", context.task.payload["question"])])
    sampling = Sampling(max_tokens=context.task.payload["tokens"], temperature=2.0)
    try:
        while True:
            generation = await context.model.generate(session, prompt, sampling)
            context.spent(turns=1, tokens=len(generation.token_ids))
            if not context.task.payload["endless"]:
                return Output(data={"tokens": len(generation.token_ids)}, final=True)
    finally:
        await context.model.release(session)
"""


def test_a_cancel_ends_generations_on_the_server_and_counts_their_tokens(
    vllm_url: str, short_path: Path, tell: Callable[[str], None]
) -> None:
    with (
        running_topology(
            short_path, topology({"url": vllm_url}), {"endless": ENDLESS}, ready_s=240
        ) as site,
        Client(site.topology.path, "trainer") as client,
    ):
        until(site, lambda: backend_figure(client, "backends") == 1, "the backend in use")
        before = sampled(vllm_url)
        payload = {"question": "Start with 2.", "tokens": 1500, "endless": True}
        names = client.submit(Task("endless", "kinds.endless", payload), ROLLOUTS)
        until(site, lambda: metric(vllm_url, "num_requests_running") == ROLLOUTS, "generations")
        until(site, lambda: sampled(vllm_url) - before > 50 * ROLLOUTS, "tokens")
        began = time.monotonic()
        answer = client.cancel(names)
        until(site, lambda: metric(vllm_url, "num_requests_running") == 0, "an idle server")
        stopped_s = time.monotonic() - began
        assert {receipt.rollout_id for receipt in answer.receipts} == set(names)
        assert {(receipt.stage, receipt.running) for receipt in answer.receipts} == {("run", True)}
        counted = sum(receipt.usage.tokens for receipt in answer.receipts)
        spent = sampled(vllm_url) - before
        assert abs(spent - counted) <= UNSEEN_TOKENS * ROLLOUTS, (spent, counted)
        assert min(receipt.usage.tokens for receipt in answer.receipts) > 0
        assert {rollout.outcome for rollout in client.rollouts()} == {"cancelled"}

        total = sampled(vllm_url)
        client.submit(Task("short", "kinds.endless", payload | {"tokens": 16, "endless": False}))
        [rollout] = client.rollouts()
        until(site, lambda: sampled(vllm_url) >= total + rollout.data["run"]["tokens"], "its end")
        assert sampled(vllm_url) == total + rollout.data["run"]["tokens"], "nothing ran beside it"
    tell(f"vLLM: {ROLLOUTS} generations stopped {stopped_s:.2f} s after the call of cancel")
    tell(f"vLLM: {counted:.0f} tokens in receipts, {spent:.0f} by the server's own count")
    assert stopped_s < STOPPED_S


def until(site: Site, holds: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_at, f"waited {PATIENCE_S:g} s for {what}"
        site.supervisor.watch()
        time.sleep(0.02)


def backend_figure(client: Client, name: str) -> float:
    nodes = {each["node"]: each["figures"] for each in client.status()["nodes"]}
    return float(nodes.get("router", {}).get(name, 0.0))


def sampled(url: str) -> float:
    return metric(url, "generation_tokens_total")
