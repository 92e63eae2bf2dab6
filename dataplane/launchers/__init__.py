"""Start, adopt and stop processes."""

from dataplane.launchers.base import Launcher, LaunchError, ProcessSpec, RunningProcess
from dataplane.launchers.local import LocalLauncher

__all__ = ["LaunchError", "Launcher", "LocalLauncher", "ProcessSpec", "RunningProcess"]
