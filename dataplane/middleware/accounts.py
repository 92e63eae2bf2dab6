"""What an engine did for each request that came through the gateway: numbers only, never a prompt or a token.

The middleware opens an account when a request comes and closes it with the answer's last byte. In between the engine
books on it: vLLM through its stat logger plugins (``vllm_plugin``), by its own name of the request, the simulated
engine through ``current``. Without such an engine only first bytes are told.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

from dataplane.middleware.datagrams import Datagrams

#: What the router takes as a request's id.
REQUEST_ID = re.compile(rb"[!-~]{1,128}")
#: Accounts that are open at once; more requests than an engine takes at once go without one.
MAX_OPEN = 16_384
#: Closed accounts that still wait for the engine's word; the oldest leave.
MAX_LATE = 256
_UNKNOWN = -1.0
#: Answers from this status on have no tokens.
FIRST_ERROR = 400


class Figures(NamedTuple):
    """What an engine knows of one finished sequence. Seconds below 0 are not known."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: float = _UNKNOWN
    prefill_s: float = _UNKNOWN


class Account:
    """One request. ``key`` is the part of the engine's own name of it that the client or the gateway chose."""

    __slots__ = ("_accounts", "_parts", "closed", "key", "request_id", "told")

    def __init__(self, accounts: Accounts, request_id: bytes, key: str) -> None:
        self._accounts = accounts
        self._parts: dict[Hashable, Figures] = {}
        self.request_id = request_id
        self.key = key
        self.closed = False
        self.told = False

    def first_token(self) -> None:
        """Tell that the prompt is computed, once."""
        accounts = self._accounts
        if self in accounts.waiting:
            del accounts.waiting[self]
            accounts.put(b"F " + self.request_id)

    def first_byte(self, status: int) -> None:
        """See HeldStart: a stream's first byte is its first token; a refusal has none."""
        if status < FIRST_ERROR:
            self.first_token()

    def last_byte(self, status: int) -> None:
        """See HeldStart."""
        self._accounts.close(self, answered=status < FIRST_ERROR)

    def finished(self, prompt: Hashable, figures: Figures) -> None:
        """Book one finished sequence of a prompt; of several choices the one that found the least cached counts."""
        known = self._parts.get(prompt)
        if known is not None:
            output = known.output_tokens + figures.output_tokens
            figures = min(known, figures, key=_cached)._replace(output_tokens=output)
        self._parts[prompt] = figures
        if self.closed:
            self.tell()

    def tell(self) -> None:
        """Tell what is booked, once, if anything is."""
        if self.told or not self._parts:
            return
        self.told = True
        parts = self._parts.values()
        self._accounts.put(
            b"E %s %d %d %d %d %d"
            % (
                self.request_id,
                sum(part.prompt_tokens for part in parts),
                sum(part.cached_tokens for part in parts),
                sum(part.output_tokens for part in parts),
                _microseconds(part.queue_s for part in parts),
                _microseconds(part.prefill_s for part in parts),
            )
        )


def _cached(figures: Figures) -> int:
    return figures.cached_tokens


def _microseconds(times_s: Iterable[float]) -> int:
    longest = max(times_s)
    return int(longest * 1e6) if longest >= 0 else -1


class Accounts:
    """The open accounts of one engine's server process."""

    def __init__(self, datagrams: Datagrams) -> None:
        self._datagrams = datagrams
        self.put = datagrams.put
        self._by_key: dict[str, Account | None] = {}  # None: several requests have that name
        self._late: dict[str, Account] = {}
        #: Those whose first token has not come, for engines that are to be asked.
        self.waiting: dict[Account, None] = {}
        #: The ASGI application, through which such an engine is found.
        self.application: Any = None

    def open(self, request_id: bytes, key: str) -> Account | None:
        """Open an account; None for an id that no gateway made, or when nobody listens."""
        if not self._datagrams.open or REQUEST_ID.fullmatch(request_id) is None or len(self._by_key) >= MAX_OPEN:
            return None
        account = Account(self, request_id, key)
        self._by_key[key] = None if key in self._by_key else account
        self.waiting[account] = None
        return account

    def close(self, account: Account, answered: bool) -> None:
        """Tell all that is known, at once: before the answer's last byte leaves. ``answered``: with success."""
        if account.closed:
            return
        self.waiting.pop(account, None)
        account.closed = True
        account.tell()
        self._datagrams.flush()
        if self._by_key.get(account.key) is account and answered and not account.told:
            self._keep_late(account)
        else:
            self._by_key.pop(account.key, None)

    def find(self, name: str) -> Account | None:
        """Return the account of vLLM's name of a request.

        That is ``<word>-<key>`` (chat), ``<word>-<key>-<number>`` (one prompt of several), or ``<key>_0`` (the first
        turn of a response; later ones, after tools, compute what the first has cached, and are not counted).
        """
        table = self._by_key
        rest = name.partition("-")[2]
        return table.get(rest) or table.get(rest.rpartition("-")[0]) or table.get(name.removesuffix("_0"))

    def finished(self, name: str, figures: Figures) -> None:
        """Book a finished sequence under vLLM's name of its request."""
        account = self.find(name)
        if account is None:
            return
        self.waiting.pop(account, None)
        account.finished(name, figures)
        if account.closed:
            self._late.pop(account.key, None)
            self._by_key.pop(account.key, None)

    def cache_cleared(self) -> None:
        """Tell that the prefix cache was dropped."""
        self._datagrams.put(b"C")

    def end(self) -> None:
        """Tell no more."""
        self._datagrams.close()

    def _keep_late(self, account: Account) -> None:
        self._late[account.key] = account
        if len(self._late) > MAX_LATE:
            oldest = next(iter(self._late))
            del self._late[oldest]
            self._by_key.pop(oldest, None)


#: The accounts of this process; the middleware sets them, the engine books on them.
of_process = Accounts(Datagrams("", ""))
#: The account of the request that runs now, for an engine that lives in the same tasks.
current: ContextVar[Account | None] = ContextVar("slipstream_account", default=None)


def serve(server: str, path: str) -> Accounts:
    """Make this process's accounts: reports of ``server`` go to the unix socket at ``path``; '' for no reports.

    Those that were made before tell nothing any more.
    """
    global of_process  # noqa: PLW0603 - one server process is one engine's
    of_process.end()
    of_process = Accounts(Datagrams(server, path))
    return of_process
