"""vLLM's side of the accounts: a stat logger, which vLLM (0.32) loads through its plugin group.

The engine path names it as an entry point of ``vllm.stat_logger_plugins``; only vLLM imports this module. It reads what
vLLM counts anyway. Whatever a later vLLM calls otherwise is then not told, and nothing else changes.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found]

from dataplane.middleware import accounts
from dataplane.middleware.accounts import Figures

_log = logging.getLogger(__name__)


class SlipstreamStatLogger(StatLoggerBase):  # type: ignore[misc]
    """Books every finished sequence on its request's account, and notes whose first token has come."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._failed = False

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take one step's statistics; runs in the API server's loop, before the answers of that step go on."""
        if iteration_stats is None or self._failed:
            return
        try:
            _record(iteration_stats)
        except Exception:
            self._failed = True
            _log.exception("this vLLM counts otherwise: the router is told first bytes only")

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def _record(iteration_stats: Any) -> None:
    book = accounts.of_process
    if book.waiting and iteration_stats.time_to_first_tokens_iter:
        _first_tokens(book)
    for done in iteration_stats.finished_requests:
        book.finished(
            done.request_id,
            Figures(
                done.num_prompt_tokens,
                min(done.num_cached_tokens, done.num_prompt_tokens),
                done.num_generation_tokens,
                done.queued_time,
                done.prefill_time,
            ),
        )


def _first_tokens(book: accounts.Accounts) -> None:
    """Ask for those that wait; a whole answer has no byte that would tell when its prompt was computed."""
    processor = book.application.state.engine_client.output_processor
    for account in list(book.waiting):
        key = account.key
        for name in (f"chatcmpl-{key}", f"cmpl-{key}-0", f"{key}_0"):
            for inner in processor.external_req_ids.get(name, ()):
                if not processor.request_states[inner].is_prefilling:
                    account.first_token()
                    break
