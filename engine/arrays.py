"""Arrays to body frames and back, without a copy where that can be.

Job: describe a numpy array as a buffer, and read one from its frame. Does not know: messages.
Invariants: items are little-endian and in C order; what is read cannot be written.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import LocalProtocolError, RemoteProtocolError
from .records import Buffer
from .wire import read_json, split

_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("int32", "int64", "float32", "float64", "uint8")
}
_DTYPE_NAMES: dict[np.dtype[Any], Any] = {
    dtype: name for name, little in _DTYPES.items() for dtype in (little, little.newbyteorder(">"))
}  # a dtype's own `name` is made anew, in Python, each time it is asked for


def array_buffer(name: str, array: npt.NDArray[Any]) -> tuple[Buffer, memoryview]:
    """Describe an array as one body frame, without copying it where it is contiguous.

    Raises: LocalProtocolError if its dtype has no form on the wire.
    """
    dtype = _DTYPE_NAMES.get(array.dtype)
    if dtype is None:
        raise LocalProtocolError(f"dtype {array.dtype.name} is not one of the wire's", name)
    if array.size == 0:
        return Buffer(name, dtype, array.shape), memoryview(b"")
    flat = np.ascontiguousarray(array, dtype=_DTYPES[dtype])
    return Buffer(name, dtype, array.shape), flat.data.cast("B")


def read_buffer(buffer: Buffer, frame: Any) -> Any:
    """Return a body frame's JSON value, or its array as a read-only view on the frame.

    Raises: RemoteProtocolError if a json frame does not parse, or if no array has the shape.
    """
    if buffer.dtype == "json":
        return read_json(buffer, frame)
    array = np.frombuffer(memoryview(frame), dtype=_DTYPES[buffer.dtype])
    if not array.flags.aligned:
        array = array.copy()
    if buffer.shape == array.shape:
        return array
    try:
        return array.reshape(buffer.shape)
    except ValueError as wrong:
        raise RemoteProtocolError(str(wrong), buffer.name) from None


def read_body(
    buffers: Sequence[Buffer], body: Sequence[Any]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the JSON values and the arrays of a body, each by name.

    Raises: RemoteProtocolError as `read_buffer`.
    """
    values: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for buffer, frame in zip(buffers, split(buffers, body), strict=True):
        into = values if buffer.dtype == "json" else arrays
        into[buffer.name] = read_buffer(buffer, frame)
    return values, arrays
