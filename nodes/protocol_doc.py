"""The tables of docs/inference-protocol.md, derived from the records in `inference.messages`.

Job: `python -m nodes.protocol_doc` rewrites them; a test proves the page current.
Does not know: how a record is told; `engine.protocol_doc` does.
"""

from pathlib import Path

from engine.protocol_doc import Direction, message_blocks, rewrite

from .inference import messages

PAGE = Path(__file__).parent.parent / "docs" / "inference-protocol.md"
DIRECTIONS = (
    Direction("from-run-worker", messages.FROM_RUN_WORKER),
    Direction("to-run-worker", messages.TO_RUN_WORKER),
    Direction("from-backend", messages.FROM_BACKEND),
    Direction("to-backend", messages.TO_BACKEND),
)


def blocks() -> dict[str, str]:
    """Return every derived part of the page by the name of its markers."""
    return message_blocks(DIRECTIONS)


def main() -> None:
    """Rewrite the derived parts of the page."""
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")


if __name__ == "__main__":
    main()
