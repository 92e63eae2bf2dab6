"""Asks HAProxy itself whether rendered files are sound."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dataplane.gateway.errors import CheckFailed

#: 4,096 servers take about a second; a busy machine several.
CHECK_TIMEOUT_S = 60.0
#: Of what HAProxy says, in characters.
MAX_DETAIL = 2_000


async def check(binary: str, configuration: Path) -> None:
    """Run ``haproxy -c``. Raises CheckFailed with its words."""
    process = await asyncio.create_subprocess_exec(
        binary,
        "-c",
        "-f",
        str(configuration),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            output, _ = await process.communicate()
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise CheckFailed(f"haproxy -c took longer than {CHECK_TIMEOUT_S:g} s") from None
        raise
    if process.returncode != 0:
        raise CheckFailed(_alerts(output.decode("utf-8", "replace")) or f"haproxy -c ended with {process.returncode}")


def _alerts(output: str) -> str:
    lines = [line for line in output.splitlines() if "[ALERT]" in line] or output.splitlines()
    return "\n".join(lines)[:MAX_DETAIL]
