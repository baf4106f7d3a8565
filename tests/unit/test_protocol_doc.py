import re
from pathlib import Path
from typing import Any

import pytest

from engine import protocol_doc
from engine.ledger import ACTIONS, STATES
from engine.records import OUTCOMES
from engine.wire import HEADER_BYTES, VERSION
from nodes import protocol_doc as inference_doc

from ..wire_kit import KINDS

PAGE = protocol_doc.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [protocol_doc, inference_doc], ids=lambda m: m.__name__)
def test_the_page_is_current(module: Any) -> None:
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.rewrite(page, module.blocks()) == page, f"run python -m {module.__name__}"


def test_every_message_has_a_table() -> None:
    for kind in KINDS:
        assert f"#### `{kind.kind}`" in PAGE


def test_every_record_that_a_message_contains_has_a_table() -> None:
    for record in ("Buffer", "Failure", "Receipt", "StageTiming", "Usage"):
        assert f"#### {record}\n" in PAGE


def test_the_prose_speaks_of_this_version_and_these_bounds() -> None:
    assert f"version {VERSION}" in PAGE.splitlines()[0]
    assert f"rollmq/{VERSION} submit" in PAGE
    assert f"at most {HEADER_BYTES // 2**20} MiB" in PAGE


def test_the_prose_covers_every_outcome_and_refusal() -> None:
    codes = re.findall(r"^\| `code` \| (.*?) \|", PAGE, flags=re.MULTILINE)[0]
    for name in (*OUTCOMES, *re.findall(r"`(\w+)`", codes)):
        assert f"| `{name}` |" in PAGE, name


def test_the_diagram_has_every_state_and_action() -> None:
    diagram = protocol_doc.state_diagram()
    for name in STATES:
        assert re.search(rf"\b{name}\b", diagram)
    for name in ACTIONS:
        assert f": {name}\n" in diagram


def test_a_message_told_before_is_referred_to() -> None:
    page = inference_doc.blocks()["to-backend"]
    assert "#### `generate`, as above" in page
    assert "max_tokens" not in page


def test_a_page_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="begin: states"):
        protocol_doc.rewrite("no markers", {"states": ""})


def test_links_lead_somewhere() -> None:
    for page in (protocol_doc.PAGE, inference_doc.PAGE):
        for link in re.findall(r"\]\(([\w.-]+)\)", page.read_text(encoding="utf-8")):
            assert (Path(page).parent / link).exists(), link
