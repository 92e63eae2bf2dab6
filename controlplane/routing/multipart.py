"""The one field of a multipart form (RFC 7578) that routing needs."""

from __future__ import annotations

import re

#: Parts that are looked at before the search gives up.
MAX_PARTS = 64
#: A boundary's longest form (RFC 2046).
MAX_BOUNDARY_BYTES = 70
MAX_VALUE_BYTES = 255

_NAME = re.compile(rb'content-disposition:[^\r\n]*?[; ]name="?([^";\r\n]*)"?', re.IGNORECASE)


def form_model(body: bytes, complete: bool) -> tuple[bytes, str]:
    """Return the value of the field ``model`` (empty: not there or not visible) and an error code (empty: none).

    The boundary is read from the body's first line, so that the Content-Type header is not needed.
    """
    start = 2 if body.startswith(b"\r\n") else 0
    line, separator, _ = body[start : start + MAX_BOUNDARY_BYTES + 4].partition(b"\r\n")
    if not separator or not line.startswith(b"--") or len(line) < 3:
        return b"", "invalid_body"
    at = start + len(line)
    for _ in range(MAX_PARTS):
        if body.startswith(b"--", at):
            return b"", ""
        head = body.find(b"\r\n\r\n", at)
        end = body.find(b"\r\n" + line, at)
        if head < 0:
            return b"", "invalid_body" if complete else ""
        if 0 <= end < head:
            at = end + 2 + len(line)
            continue
        named = _NAME.search(body, at, head)
        if named is not None and named.group(1) == b"model":
            return _value(body, head + 4, end, complete)
        if end < 0:
            return b"", "invalid_body" if complete else ""
        at = end + 2 + len(line)
    return b"", ""


def _value(body: bytes, start: int, end: int, complete: bool) -> tuple[bytes, str]:
    if end < 0:
        return b"", "invalid_body" if complete else ""
    value = body[start:end].strip()
    return (value, "") if len(value) <= MAX_VALUE_BYTES else (b"", "invalid_model")
