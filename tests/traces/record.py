"""Record what a real vLLM's scheduler does with multi-turn sessions, step by step.

    PYTHON_WITH_VLLM tests/traces/record.py tests/traces/vllm.json

The engine runs in this process and is stepped by hand, so a trace has no timing in it: a request
that is added before step n is scheduled in step n at the earliest, and repeating the recording
gives the same trace. The model is a tiny random one; its weights do not matter to the scheduler.

Three schedules, each with 2, 6 and 16 sessions of 8 turns on a 4,096-token cache:

    turns    one request at a time, sessions taken in turn: what leaves the cache, and when
    waves    every session's turn at once, then every next turn: admission and preemption
    closed   a session's next turn comes as soon as its last one ended: everything together

Needs vLLM 0.32 and nothing else of this repository.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

import vllm

VOCABULARY = 2048
BLOCK_TOKENS, CACHE_TOKENS, STEP_TOKENS, STEP_SEQUENCES = 32, 4096, 256, 64
TURNS, SYSTEM_TOKENS = 8, 40
QUESTION_TOKENS, ANSWER_TOKENS = (8, 32), (36, 84)
SCHEDULES, SESSIONS = ("turns", "waves", "closed"), (2, 6, 16)
MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


class Sessions:
    """The conversations: what each turn adds to its session, and how long its answer is."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._chance = random.Random(seed)
        self._system = self._tokens(SYSTEM_TOKENS)
        self._tokens_of: dict[int, list[int]] = {session: [] for session in range(count)}
        self._turns = dict.fromkeys(range(count), 0)

    def ask(self, session: int) -> dict[str, Any] | None:
        """Return the session's next request, or None if it is over."""
        if self._turns[session] == TURNS:
            return None
        self._turns[session] += 1
        added = self._tokens(self._chance.randint(*QUESTION_TOKENS))
        if self._turns[session] == 1:
            added = self._system + added
        self._tokens_of[session] += added
        answer_tokens = self._chance.randint(*ANSWER_TOKENS)
        return {"session": session, "added": added, "answer_tokens": answer_tokens}

    def prompt(self, session: int) -> list[int]:
        return list(self._tokens_of[session])

    def answer(self, session: int, token_ids: list[int]) -> None:
        self._tokens_of[session] += token_ids

    def _tokens(self, count: int) -> list[int]:
        return [self._chance.randrange(VOCABULARY) for _ in range(count)]


class Recorder:
    """One engine; a trace per schedule and number of sessions."""

    def __init__(self, directory: str) -> None:
        (Path(directory) / "config.json").write_text(json.dumps(MODEL))
        self._llm = vllm.LLM(
            model=directory,
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            async_scheduling=False,
            block_size=BLOCK_TOKENS,
            num_gpu_blocks_override=CACHE_TOKENS // BLOCK_TOKENS,
            max_num_batched_tokens=STEP_TOKENS,
            max_num_seqs=STEP_SEQUENCES,
            max_model_len=1024,
            disable_log_stats=False,
            seed=0,
        )
        self._engine = self._llm.llm_engine

    def record(self, schedule: str, count: int) -> dict[str, Any]:
        """Return the trace of `count` sessions."""
        self._llm.reset_prefix_cache()
        before = self._metrics()
        sessions = Sessions(count, seed=count)
        self._open: dict[str, dict[str, Any]] = {}
        self._requests: list[dict[str, Any]] = []
        self._steps = 0
        for wave in self._waves(schedule, sessions):
            for session in wave:
                self._ask(sessions, session)
            self._run(sessions, again=schedule == "closed")
        metrics = {name: value - before[name] for name, value in self._metrics().items()}
        return {
            "schedule": schedule,
            "sessions": count,
            "steps": self._steps,
            **metrics,
            "requests": self._requests,
        }

    def _waves(self, schedule: str, sessions: Sessions) -> Iterator[list[int]]:
        everyone = list(range(sessions.count))
        if schedule == "closed":
            yield everyone
        elif schedule == "waves":
            yield from [everyone] * TURNS
        else:
            yield from [[session] for _ in range(TURNS) for session in everyone]

    def _ask(self, sessions: Sessions, session: int) -> None:
        asked = sessions.ask(session)
        if asked is None:
            return
        answer_tokens = asked.pop("answer_tokens")
        name = f"{self._steps}-{len(self._requests)}"
        parameters = vllm.SamplingParams(
            temperature=1.0, max_tokens=answer_tokens, ignore_eos=True, detokenize=False
        )
        prompt = {"prompt_token_ids": sessions.prompt(session)}
        self._engine.add_request(name, prompt, parameters)
        self._open[name] = asked | {"added_before_step": self._steps}
        self._requests.append(self._open[name])

    def _run(self, sessions: Sessions, *, again: bool) -> None:
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            for output in outputs:
                if not output.finished:
                    continue
                asked = self._open.pop(output.request_id.split("_")[0])
                answer = list(output.outputs[0].token_ids)
                asked |= {
                    "answer": answer,
                    "cached_tokens": output.num_cached_tokens,
                    "ended_in_step": self._steps,
                }
                sessions.answer(asked["session"], answer)
            ended = [output for output in outputs if output.finished]
            self._steps += 1
            if again:
                for output in ended:
                    self._ask(sessions, self._session_of(output))

    def _session_of(self, output: Any) -> int:
        place = int(output.request_id.split("-")[1])
        return int(self._requests[place]["session"])

    def _metrics(self) -> dict[str, int]:
        names = {
            "vllm:num_preemptions": "preemptions",
            "vllm:prefix_cache_queries": "prefix_queries",
            "vllm:prefix_cache_hits": "prefix_hits",
        }
        found = {metric.name: metric for metric in self._llm.get_metrics()}
        return {ours: int(found[theirs].value) for theirs, ours in names.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(directory)
        traces = [recorder.record(schedule, count) for schedule in SCHEDULES for count in SESSIONS]
    for trace in traces:
        hit_rate = trace["prefix_hits"] / trace["prefix_queries"]
        sys.stdout.write(
            f"{trace['schedule']:7} {trace['sessions']:3} sessions: {trace['steps']} steps,"
            f" hit rate {hit_rate:.0%}, {trace['preemptions']} preemptions\n"
        )
    settings = {
        "vllm": vllm.__version__,
        "block_tokens": BLOCK_TOKENS,
        "blocks": CACHE_TOKENS // BLOCK_TOKENS,
        "step_tokens": STEP_TOKENS,
        "step_sequences": STEP_SEQUENCES,
    }
    lines = ",\n".join(json.dumps(trace, separators=(",", ":")) for trace in traces)
    head = json.dumps(settings, separators=(",", ":"))[:-1]
    Path(sys.argv[1]).write_text(f'{head},"traces":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
