"""Types of single values in a spec: names, addresses, sizes and ports, each checked in whole."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from dataplane import names

#: The kernel gives ports from 32,768 on to clients: an engine that is to listen there may find its port taken.
FIRST_CLIENT_PORT = 32_768
#: Ports below need a privilege that engines do not have.
FIRST_PLAIN_PORT = 1_024
LAST_PORT = 65_535

#: Longest argument or environment value: far above what an engine needs, far below the kernel's 128 KiB.
MAX_TEXT = 8_192

_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:]{2,39})\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})")
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SESSION_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def refused(message: str) -> PydanticCustomError:
    """Return the error that a validator raises; the text may hold braces."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def shown(value: str) -> str:
    """Return the value as an error may show it: quoted, escaped, at most 80 characters."""
    return repr(value if len(value) <= 80 else value[:77] + "...")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``, did you mean 'x'?`` for the known word that is most like this one, or nothing."""
    found = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.6)
    return f", did you mean '{found[0]}'?" if found else ""


@dataclass(frozen=True, slots=True)
class Named:
    """A check that ``pattern`` matches all of a value; ``allowed`` says in words what it lets pass."""

    pattern: re.Pattern[str]
    what: str
    allowed: str

    def __call__(self, value: str) -> str:
        """Return the value; raises PydanticCustomError."""
        if self.pattern.fullmatch(value) is None:
            raise refused(f"{self.what} {shown(value)} is not allowed: {self.allowed}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after pydantic's own checks of the type."""
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Editors get the same pattern."""
        return handler(schema) | {"pattern": f"^(?:{self.pattern.pattern})$"}


_LABEL = "lower-case letters, digits and - between them, at most 63 characters"
_MODEL = "letters, digits and . _ : / + - between them, at most 128 characters"
_HOST = "write an IP address (IPv6 without brackets) or a DNS name"
_PATH = "write an absolute path of letters, digits and . _ / @ + = : , ~ -"
_ENV = "letters, digits and _, not a digit first, at most 128 characters"
_WORD = "lower-case letters, digits and _, a letter first, at most 64 characters"
_KEY = "lower-case letters, digits, _ and -, a letter first, at most 63 characters"


def _hex_digest(value: str) -> str:
    # The value is not shown: a key that was pasted in place of its digest must not reach a log.
    if names.SHA256.fullmatch(value) is None:
        raise refused("must be the SHA-256 of the key as 64 lower-case hex digits (printf %s KEY | sha256sum)")
    return value


def _plain_text(value: str) -> str:
    # The value is not shown: it may hold a secret.
    if len(value) > MAX_TEXT:
        raise refused(f"is longer than {MAX_TEXT} characters")
    if _CONTROL.search(value) is not None:
        raise refused("must not hold a control character (newline, tab, NUL, ...)")
    return value


def _digits(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    if found is None:
        raise refused(f"size {shown(value)} is not allowed: write bytes as a number, or like 64KiB, 64MiB, 1GiB")
    return int(found[1]) * _UNITS[found[2]]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[v6]:port``; raises ValueError."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{shown(address)} is not allowed: write host:port, or [address]:port for IPv6")
    host, port = found["v6"] or found["host"], int(found["port"])
    if names.HOST.fullmatch(host) is None:
        raise ValueError(f"host {shown(host)} is not allowed: {_HOST}")
    if not 1 <= port <= LAST_PORT:
        raise ValueError(f"port {port} is not between 1 and {LAST_PORT}")
    return host, port


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host and port of ``http://host:port``; raises ValueError."""
    scheme = "http://"
    if not endpoint.startswith(scheme):
        raise ValueError(f"endpoint {shown(endpoint)} is not allowed: write http://host:port")
    return split_address(endpoint[len(scheme) :])


def split_ports(ports: str) -> tuple[int, int]:
    """Return the first and the last port of ``first-last``; raises ValueError."""
    found = _PORTS.fullmatch(ports)
    if found is None:
        raise ValueError(f"ports {shown(ports)} are not allowed: write first-last, like 21000-21999")
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise ValueError(f"ports {ports} are not allowed: the first is above the last")
    if first < FIRST_PLAIN_PORT:
        raise ValueError(f"ports {ports} are not allowed: those below {FIRST_PLAIN_PORT} need a privilege")
    if last >= FIRST_CLIENT_PORT:
        raise ValueError(
            f"ports {ports} are not allowed: the kernel gives those from {FIRST_CLIENT_PORT} on to clients"
        )
    return first, last


def _address(value: str) -> str:
    split_address(value)
    return value


def _endpoint(value: str) -> str:
    split_endpoint(value)
    return value


def _ports(value: str) -> str:
    split_ports(value)
    return value


def _path_or_none(value: str) -> str:
    if value and names.PATH.fullmatch(value) is None:
        raise refused(f"path {shown(value)} is not allowed: {_PATH}")
    return value


def _weights(value: str) -> str:
    if names.PATH.fullmatch(value) is None and names.MODEL.fullmatch(value) is None:
        raise refused(f"model {shown(value)} is not allowed: write an absolute directory, or a hub name like org/name")
    return value


Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]

Label = Annotated[Text, Named(names.LABEL, "name", _LABEL)]
ModelName = Annotated[Text, Named(names.MODEL, "name", _MODEL)]
Host = Annotated[Text, Named(names.HOST, "address", _HOST)]
Path = Annotated[Text, Named(names.PATH, "path", _PATH)]
PathOrNone = Annotated[Text, AfterValidator(_path_or_none)]
Sha256 = Annotated[Text, AfterValidator(_hex_digest)]
PlainText = Annotated[Text, AfterValidator(_plain_text)]
#: Text, or a whole number that stands for its digits: YAML's ``OMP_NUM_THREADS: 1``.
WordOrInteger = Annotated[PlainText, BeforeValidator(_digits, json_schema_input_type=int | str)]
EnvName = Annotated[Text, Named(_ENV_NAME, "environment variable", _ENV)]
ParameterName = Annotated[Text, Named(_PARAMETER, "parameter", _WORD)]
SessionKey = Annotated[Text, Named(_SESSION_KEY, "session key", _KEY)]
Address = Annotated[Text, AfterValidator(_address)]
Endpoint = Annotated[Text, AfterValidator(_endpoint)]
Ports = Annotated[Text, AfterValidator(_ports)]
Weights = Annotated[Text, AfterValidator(_weights)]
#: Keeps a mapping sorted, so that one cluster has one text.
IN_ORDER = AfterValidator(lambda mapping: dict(sorted(mapping.items())))
#: Bytes: a number, or text like ``64MiB``.
Size = Annotated[Count, BeforeValidator(_size, json_schema_input_type=int | str)]
