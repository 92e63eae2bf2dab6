"""The few variables of our own environment that every process we start inherits."""

from __future__ import annotations

from collections.abc import Mapping

#: Where programs, homes, locales, temporary files, caches and certificates are. No variable here is a secret:
#: what an engine needs beyond these (a hub token, a proxy) is named in its own environment.
BASE_NAMES = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "PYTHONDONTWRITEBYTECODE",
        "OMP_NUM_THREADS",
    }
)
#: Locales, and what accelerators and their collectives are set up with.
BASE_PREFIXES = ("LC_", "CUDA", "NVIDIA_", "NCCL_", "GLOO_", "UCX_", "HIP_", "ROCR_", "ROCM_", "GPU_")


def base_environment(source: Mapping[str, str]) -> dict[str, str]:
    """Return the part of ``source`` that every process gets."""
    return {name: value for name, value in source.items() if name in BASE_NAMES or name.startswith(BASE_PREFIXES)}
