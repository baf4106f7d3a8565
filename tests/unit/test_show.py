"""`rollmq show` and `rollmq tasks`, on files."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from engine.output import FILE_NAME, write_rollout
from engine.records import Failure, StageTiming
from engine.trajectories import Rollout
from nodes import tokens
from nodes.agent import ChatmlTemplate, Conversation, Message
from nodes.commands import show, tasks
from nodes.show import console_for, decoder, find, show_rollout
from nodes.tasks import Generation
from nodes.transcript import Transcript

from ..agent_kit import generation

VOCABULARY = tokens.load()


def rollout(rollout_id: str = "r-1") -> Rollout:
    transcript = Transcript()
    transcript.prompt(VOCABULARY.opening([("user", "[red]2 + 2?[/red]")]))
    ids = np.array(VOCABULARY.encode_marked("<answer>4</answer><|im_end|>"), dtype=np.int32)
    spans = np.array([[0, len(ids), 3]], dtype=np.int32)
    logprobs = np.full(len(ids), -0.5, dtype=np.float32)
    transcript.completion(Generation(ids, logprobs, "stop", spans, 7), 0.25)
    return Rollout(
        rollout_id=rollout_id,
        group_id="g",
        group_size=1,
        task_id="t",
        seq=1,
        outcome="completed",
        reward=1.0,
        rewards={"sum": 1.0},
        trainable=True,
        trajectory=transcript.trajectory(),
        data={"run": {"turns": transcript.turns}},
        arrays={},
        failures=(Failure("run", 1, "backend", "BoundaryError", "no backend", "run-0"),),
        timings=(StageTiming("run", 2, "run-0", 0.1, 0.2, 0.15),),
        receipt=None,
        total_s=1.5,
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with (tmp_path / FILE_NAME).open("wb") as file:
        for name in ("r-1", "r-12", "s-1"):
            write_rollout(file, rollout(name))
    return tmp_path


def drawn(what: Rollout, listed: int = 0) -> str:
    text = io.StringIO()
    show_rollout(what, listed, Console(file=text, width=200))
    return text.getvalue()


def test_a_rollout_is_drawn_with_turns_text_timings_and_failures() -> None:
    text = drawn(rollout())
    for part in (
        "outcome completed  reward 1",
        "turn 1: prompt 21 tokens (7 cached), completion 4, stop, 0.250 s, mean logprob -0.500,",
        "versions 3",
        "[red]2 + 2?[/red]",
        "<answer>4</answer><|im_end|>",
        "run 2 run-0 0.100 0.200 0.150",
        "run attempt 1: backend: BoundaryError: no backend (run-0)",
    ):
        assert " ".join(part.split()) in " ".join(text.split())


def long_rollout() -> Rollout:
    """Return a rollout of two segments, with a tool, a resumed turn and two policy versions."""
    template = ChatmlTemplate(VOCABULARY)
    talk = Conversation(template, [Message("user", "2 + 2?")])
    half = generation(VOCABULARY.encode("I "), "abort", 7, backend="b-0", queue_s=0.5)
    talk.sampled(half, 1.0)
    talk.sampled(generation(VOCABULARY.encode_marked("add.<|im_end|>"), version=8), 0.5)
    talk.said()
    talk.used("add", 0.25, "")
    talk.used("sub", 0.125, "no such tool")
    talk.rewrite([Message("user", "Now 4?")])
    talk.sampled(generation(VOCABULARY.encode_marked("4<|im_end|>")), 0.5)
    data = {"turns": talk.turns, "segments": talk.segments(), "limit": "turns"}
    return replace(rollout(), trajectory=talk.trajectory(), data={"run": data})


def test_segments_tools_versions_and_limits_are_drawn() -> None:
    found = long_rollout()
    text = " ".join(drawn(found).split())
    place = found.data["run"]["segments"][1]["start"]
    start, end = found.data["run"]["turns"][0]["completion"]
    for part in (
        "ended by its limit: turns",
        f"new segment at {place}: rewrite",
        "tool add: 0.250000 s tool sub: 0.125000 s: no such tool",
        "on b-0 (queue 0.500, prefill 0.000, decode 0.000)",
        f"versions 7 at {start}-{start + 2} 8 at {start + 2}-{end}",
        "resumed 1 times",
    ):
        assert part in text
    assert text.index("rewrite") < text.index("Now 4?")


def test_a_models_own_tokenizer_is_used_where_its_folder_is(tmp_path: Path) -> None:
    named = replace(rollout(), data={"run": {"template": str(tmp_path)}})
    ids = np.array([5, 6], dtype=np.int32)
    assert decoder(named)(ids) == " 5 6"
    (tmp_path / "tokenizer.json").write_bytes(tokens.FILE.read_bytes())
    assert decoder(named)(ids) == VOCABULARY.decode(ids)


def test_colours_come_when_asked_for_and_else_only_on_a_terminal() -> None:
    assert console_for("always").is_terminal
    assert not console_for("never").is_terminal


def test_tokens_are_coloured_by_mask_and_log_probability(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(["r-1", "--out", str(run_dir), "--color", "always"]) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[32m<answer>4</answer><|im_end|>\x1b[0m" in coloured
    assert "\x1b[2m<|im_start|>assistant\x1b[0m" in coloured
    assert show(["r-1", "--out", str(run_dir), "--color", "never"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_tokens_are_listed_one_by_one_when_asked() -> None:
    assert "'<answer>'" in drawn(rollout(), listed=100)


def test_a_rollout_without_a_trajectory_is_drawn_too() -> None:
    text = drawn(replace(rollout(), trajectory=None, reward=None, data={}))
    assert "reward none" in text


def test_a_rollout_is_found_by_the_beginning_of_its_id_and_an_exact_one_wins(run_dir: Path) -> None:
    file = run_dir / FILE_NAME
    assert find(file, "s").rollout_id == "s-1"
    assert find(file, "r-1").rollout_id == "r-1"
    with pytest.raises(LookupError, match="2 rollouts begin with 'r'"):
        find(file, "r")


def test_what_is_not_there_is_exit_status_2(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(["nope", "--out", str(run_dir)]) == 2
    assert "no rollout 'nope'" in capsys.readouterr().err
    assert show(["r-1", "--out", str(run_dir / "elsewhere")]) == 2


def test_a_rollout_is_printed_as_json(
    run_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert show(["r-1", "--out", str(run_dir), "--json"]) == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert found["trajectory"]["loss_mask"][-4:] == [1, 1, 1, 1]


def test_tasks_are_written_one_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tasks.jsonl"
    words = ["reasoning-gym", "--names", "gcd,lcm", "--count", "3", "--out", str(file)]
    assert tasks(words) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["gcd-0-0", "lcm-0-0", "gcd-0-1"]
    assert tasks([*words[:2], "gdc", *words[3:]]) == 2
    assert "no dataset gdc" in capsys.readouterr().err
