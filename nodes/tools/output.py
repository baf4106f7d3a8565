r"""What a program wrote, kept within bounds and made fit to be read.

    <bytes> ... ESC _ <nonce> ; <status> ESC \ ...

Job: find the marker that ends a command, keep the beginning and the end of what came before it, and
turn that into text.
Does not know: terminals, processes or time.
Invariants: however the bytes are cut into pieces, the result is the same. Memory is at most
`head + tail` bytes and one read. Only a marker with the nonce of this command ends it.
"""

import re
from dataclasses import dataclass

MOST_HEAD_BYTES = 9_000
MOST_TAIL_BYTES = 9_000
STATUS_BYTES = 8  # of a marker: the digits, and the two bytes that end it
_ESCAPES = re.compile(
    r"\x1b[\]PX^_].*?(?:\x1b\\|\x07)"  # strings: titles, links, stale markers
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[ -/]*[0-~]"  # everything else that two or three characters say
    r"|\x1b",
    re.DOTALL,
)
_CONTROLS = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ERASED = re.compile(r"[^\n\x08]\x08")


class Kept:
    """The first and the last bytes of a stream, and how many there were."""

    def __init__(
        self, head_bytes: int = MOST_HEAD_BYTES, tail_bytes: int = MOST_TAIL_BYTES
    ) -> None:
        self._most = head_bytes, tail_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        head, tail = self._most
        self.total_bytes += len(data)
        room = head - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-tail:] if tail else b""
        if len(self._tail) > 2 * tail:  # now and then, not for each piece
            del self._tail[:-tail]

    @property
    def left_out_bytes(self) -> int:
        """How many bytes in the middle were not kept."""
        return max(0, self.total_bytes - sum(self._most))

    def text(self) -> str:
        """Return what was kept as text, with a note where something was left out."""
        if not self.left_out_bytes:
            return readable(bytes(self._head + self._tail))
        note = f"\n[{self.left_out_bytes} bytes left out]\n"
        tail = bytes(self._tail[-self._most[1] :])
        return readable(bytes(self._head)).rstrip("\n") + note + readable(tail.lstrip(_CONTINUED))


_CONTINUED = bytes(range(0x80, 0xC0))


def readable(data: bytes) -> str:
    """Return text without escapes and control characters; what is no UTF-8 becomes U+FFFD.

    A carriage return that is not the end of a line begins the line again, as progress bars mean
    it; a backspace takes back the character before it.
    """
    text = _ESCAPES.sub("", data.decode("utf-8", "replace"))
    text = re.sub(r"\r+\n", "\n", text)
    if "\r" in text:
        text = "\n".join(_last_written(line) for line in text.split("\n"))
    while "\x08" in text:
        shorter = _ERASED.sub("", text)
        text = shorter if shorter != text else text.replace("\x08", "")
    return _CONTROLS.sub("", text)


def _last_written(line: str) -> str:
    return next((part for part in reversed(line.split("\r")) if part), "")


@dataclass(frozen=True, slots=True)
class Ended:
    """A marker was found; `rest` is what came after it."""

    status: int
    rest: bytes


class MarkedOutput:
    """The output of one command, up to its marker."""

    def __init__(self, nonce: str, kept: Kept | None = None) -> None:
        self._mark = b"\x1b_" + nonce.encode() + b";"
        self._end = re.compile(re.escape(self._mark) + rb"(\d{1,3})\x1b\\")
        self._held = b""  # what may be the beginning of a marker
        self.kept = kept or Kept()

    def feed(self, data: bytes) -> Ended | None:
        """Take bytes as they were read; return how the command ended, once it has."""
        data = self._held + data
        found = self._end.search(data)
        if found is not None:
            self._held = b""
            self.kept.add(data[: found.start()])
            return Ended(int(found[1]), data[found.end() :])
        keep = self._undecided(data)
        self.kept.add(data[: len(data) - keep])
        self._held = data[len(data) - keep :]
        return None

    def flush(self) -> None:
        """Count as output what was held back; no marker will come."""
        self.kept.add(self._held)
        self._held = b""

    def _undecided(self, data: bytes) -> int:
        """Return how many of the last bytes may belong to a marker that is not complete."""
        most = len(self._mark) + STATUS_BYTES
        start = data.rfind(b"\x1b_", max(0, len(data) - most))
        if start < 0:
            return int(data.endswith(b"\x1b"))
        last = data[start:]
        begun = self._mark.startswith(last[: len(self._mark)])
        if not begun:
            return int(data.endswith(b"\x1b"))
        rest = last[len(self._mark) :]
        return len(last) if re.fullmatch(rb"\d{0,3}\x1b?", rest) else int(data.endswith(b"\x1b"))
