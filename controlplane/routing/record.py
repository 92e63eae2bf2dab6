"""What a request is, read from HAProxy's feature record (docs/contracts.md) or from a gRPC caller's parts.

``body.py`` reads the same from the body itself, when the record does not tell enough.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from controlplane.routing.errors import MalformedFeatures

VERSION = 1
#: version, kind, flags, model_state, body_bytes, prompt_bytes, max_tokens, length of the model.
HEADER = Struct("<BBBBIIIB")
#: Header and three empty strings.
SMALLEST_RECORD = HEADER.size + 2
#: HAProxy hashes the first 128 KiB of a body in blocks of 4 KiB; one more may begin before the end.
MAX_HASH_BYTES = 8 * 33
U32 = 0xFFFFFFFF

WHOLE_BODY = 1
MULTIPART = 2
EMPTY_BODY = 4
NOT_AN_OBJECT = 8
ALL_FLAGS = 15

MODEL_NOT_SEEN = 0
MODEL_SEEN = 1
MODEL_AMBIGUOUS = 2

#: Request kinds by number; index 0 is none.
KINDS = (
    "",
    "chat",
    "completions",
    "responses",
    "messages",
    "embeddings",
    "score",
    "rerank",
    "pooling",
    "classify",
    "transcription",
    "translation",
    "tokenize",
    "detokenize",
    "response",
)
KIND_NUMBERS = {name: number for number, name in enumerate(KINDS) if name}
RESPONSE = KIND_NUMBERS["response"]
#: The other kinds have no output that would slow others down.
GENERATING_KINDS = frozenset(KIND_NUMBERS[kind] for kind in ("chat", "completions", "responses", "messages"))
MULTIPART_KINDS = frozenset({KIND_NUMBERS["transcription"], KIND_NUMBERS["translation"]})

#: What is still needed before a request without a model can be refused.
ASK_FOR_BODY = "more"


class Request(NamedTuple):
    """One request's features.

    ``plain`` is true when nothing but ``model`` is needed to route it: no error, no pin, no doubt. ``hashes`` are
    the record's bytes: 8, little endian, for each block of 4,096 bytes. ``error`` is a code that refuses the request
    whatever the cluster; ``missing`` is what happens when the model is not known and the cluster has several:
    ``more`` or a code. ``session`` is ``<key>=<value>`` or empty; ``pin`` is eight hex digits or empty.
    """

    plain: bool
    kind: int
    flags: int
    model: bytes
    session: bytes
    pin: bytes
    hashes: bytes
    body_bytes: int
    prompt_bytes: int
    max_tokens: int
    tenant: bytes
    error: str
    missing: str


_new = tuple.__new__


def parse(record: bytes, tenant: bytes = b"") -> Request:
    """Read a feature record. Raises MalformedFeatures for anything that the contract does not allow."""
    if len(record) < SMALLEST_RECORD:
        raise MalformedFeatures("the feature record is too short")
    version, kind, flags, state, body_bytes, prompt_bytes, max_tokens, length = HEADER.unpack_from(record)
    try:
        at = 17 + length
        model = record[17:at]
        length = record[at]
        at += 1
        session = record[at : at + length]
        at += length
        length = record[at]
        at += 1
        pin = record[at : at + length]
        hashes = record[at + length :]
    except IndexError:
        raise MalformedFeatures("a string of the feature record passes its end") from None
    if at + length > len(record) or len(hashes) & 7 or len(hashes) > MAX_HASH_BYTES:
        raise MalformedFeatures("the feature record's length is wrong")
    if version != VERSION or not 0 < kind < 15 or flags > ALL_FLAGS or state > MODEL_AMBIGUOUS or length not in (0, 8):
        raise MalformedFeatures("the feature record has a value that is not defined")
    if state == MODEL_SEEN and flags < EMPTY_BODY and not pin and model:
        return _new(
            Request,
            (True, kind, flags, model, session, b"", hashes, body_bytes, prompt_bytes, max_tokens, tenant, "", ""),
        )
    error, missing = _doubt(kind, flags, state)
    if state != MODEL_SEEN:
        model = b""
    return Request(
        False, kind, flags, model, session, pin, hashes, body_bytes, prompt_bytes, max_tokens, tenant, error, missing
    )


def _doubt(kind: int, flags: int, state: int) -> tuple[str, str]:
    """Return the error that is certain from the record alone, and what to do when the model is not known."""
    if kind == RESPONSE:
        return "", "response_not_found"
    if flags & EMPTY_BODY:
        return "empty_body", ""
    malformed = flags & NOT_AN_OBJECT and not flags & MULTIPART
    if malformed or state == MODEL_AMBIGUOUS or (state == MODEL_NOT_SEEN and flags & WHOLE_BODY):
        # The exact reader of the body says which error it is, or that there is none.
        return ASK_FOR_BODY, ASK_FOR_BODY
    return "", ASK_FOR_BODY


def record(request: Request, model_state: int = MODEL_SEEN) -> bytes:
    """Write the feature record of a request, as HAProxy would. Raises ValueError when a string is too long."""
    if max(len(request.model), len(request.session), len(request.pin)) > 255:
        raise ValueError("a string of a feature record has at most 255 bytes")
    return b"".join(
        (
            HEADER.pack(
                VERSION,
                request.kind,
                request.flags,
                model_state,
                min(request.body_bytes, U32),
                min(request.prompt_bytes, U32),
                min(request.max_tokens, U32),
                len(request.model),
            ),
            request.model,
            bytes((len(request.session),)),
            request.session,
            bytes((len(request.pin),)),
            request.pin,
            request.hashes,
        )
    )
