"""What a Jupyter kernel publishes, as text.

Job: text for streams, results, displays and errors; a note for what is no text.
Does not know: sockets. The content of a message was made by code that a model wrote.
Invariants: never raises, whatever the content is.
"""

from typing import Any

IMAGES = ("image/png", "image/jpeg", "image/svg+xml", "image/gif", "application/pdf")
TEXTS = ("text/plain", "text/markdown", "text/latex", "application/json", "text/html")


def published(kind: str, content: Any) -> str:
    """Return the text of a message of that kind, such as `stream`; it may be empty."""
    if not isinstance(content, dict):
        return ""
    match kind:
        case "stream":
            return _string(content.get("text"))
        case "execute_result" | "display_data":
            return _bundle(content.get("data"))
        case "error":
            lines = content.get("traceback")
            return "\n".join(map(_string, lines)) + "\n" if isinstance(lines, list) else ""
    return ""


def _bundle(data: Any) -> str:
    if not isinstance(data, dict):
        return ""
    notes = [f"[{kind}, {_size(data[kind])} characters encoded]" for kind in IMAGES if kind in data]
    text = next((_string(data[kind]) for kind in TEXTS if kind in data), "")
    parts = [part for part in (text, *notes) if part]
    return "\n".join(parts) + "\n" if parts else ""


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int | dict) else ""
