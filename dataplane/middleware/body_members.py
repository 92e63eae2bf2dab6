"""Write members into a request's JSON body while it passes by. Sans-I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dataplane.middleware.asgi import Message, Receive

_WHITESPACE = b" \t\r\n"
#: Enough to tell UTF-8 from UTF-16 and UTF-32 (RFC 4627, section 3).
_ENCODING_BYTES = 4


class MemberWriter:
    """Add last members, name and text, to a JSON object that arrives in pieces, holding only its tail.

    The last of two members of one name is the one that counts in every parser that vLLM uses, so a client's own
    is overruled without parsing the body. What is not JSON before is not JSON after: outside a string the members are
    whole tokens, and inside one the first quote ends the string and leaves the bare word of a name.
    The body always grows by exactly ``growth`` bytes, so its new length is known before its end is: where nothing
    is added (the body ends with anything but ``}``) white space is. A body in UTF-16 or UTF-32, whose end is not to
    be found that way, becomes all white space, which the engine refuses as it refuses any body that is not JSON.
    """

    __slots__ = ("_before", "_blank", "_member", "_started", "_tail")

    def __init__(self, members: Mapping[str, str]) -> None:
        """``members`` is not empty; the names are words without a colon or a quote."""
        self._member = b",".join(f"{json.dumps(name)}:{json.dumps(text)}".encode() for name, text in members.items())
        self._tail: list[bytes] = []  # the `}` that may be the last, and white space after it
        self._before = b""  # the last byte that was passed on and is not white space
        self._started = False
        self._blank = False

    @property
    def growth(self) -> int:
        """Bytes by which the body grows."""
        return len(self._member) + 1

    def feed(self, data: bytes, more: bool) -> bytes:
        """Return what may be passed on."""
        ready = self._advance(data, more)
        return ready if more else ready + self._ending()

    def _advance(self, data: bytes, more: bool) -> bytes:
        if self._started and self._tail and not data.strip(_WHITESPACE):
            self._tail.append(data)
            return b""
        data = b"".join((*self._tail, data))
        self._tail.clear()
        if not self._started:
            if more and len(data) < _ENCODING_BYTES:
                self._tail.append(data)
                return b""
            self._blank = not json.detect_encoding(data).startswith("utf-8")
            self._started = True
        if self._blank:
            return b" " * len(data)
        end = len(data.rstrip(_WHITESPACE))
        if data[end - 1 : end] != b"}":
            self._before = data[end - 1 : end] or self._before
            return data
        ready = data[: end - 1]
        self._tail.append(data[end - 1 :])
        self._before = ready.rstrip(_WHITESPACE)[-1:] or self._before
        return ready

    def _ending(self) -> bytes:
        if not self._tail:
            return b" " * self.growth
        return b"".join((b" " if self._before == b"{" else b",", self._member, *self._tail))


def with_members(receive: Receive, writer: MemberWriter) -> Receive:
    """Return a ``receive`` whose body has the members. After it, the server's own ``receive`` is awaited."""
    done = False

    async def edited() -> Message:
        nonlocal done
        message = await receive()
        if done or message["type"] != "http.request":
            return message
        more = bool(message.get("more_body", False))
        done = not more
        return {"type": "http.request", "body": writer.feed(message.get("body", b""), more), "more_body": more}

    return edited


def grown_headers(headers: list[tuple[bytes, bytes]], growth: int) -> list[tuple[bytes, bytes]]:
    """Return the headers with ``content-length`` larger by ``growth``; a chunked body has none, and keeps none."""
    grown = []
    for name, value in headers:
        grows = name == b"content-length" and value.isdigit()
        grown.append((name, b"%d" % (int(value) + growth)) if grows else (name, value))
    return grown
