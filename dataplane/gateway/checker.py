"""Asks HAProxy itself whether rendered files are sound."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from dataplane.gateway.errors import CheckFailed
from dataplane.gateway.render import FOLDER_VARIABLE

#: 4,096 servers take about a second; a busy machine several.
CHECK_TIMEOUT_S = 60.0
#: Of what HAProxy says, in characters.
MAX_DETAIL = 2_000
#: Its process id, like the folder's name, differs each time: without them equal errors read equal.
_ALERT = re.compile(r"\[ALERT\]\s*\(\d+\) : ")


async def check(binary: str, configuration: Path) -> None:
    """Run ``haproxy -c``. Raises CheckFailed with its words."""
    process = await asyncio.create_subprocess_exec(
        binary,
        "-c",
        "-f",
        str(configuration),
        env={**os.environ, FOLDER_VARIABLE: str(configuration.parent)},
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
        words = output.decode("utf-8", "replace").replace(f"{configuration.parent}/", "")
        raise CheckFailed(_alerts(words) or f"haproxy -c ended with {process.returncode}")


def _alerts(output: str) -> str:
    lines = [line[found.end() :] for line in output.splitlines() if (found := _ALERT.match(line))]
    return "\n".join(lines or output.splitlines())[:MAX_DETAIL]
