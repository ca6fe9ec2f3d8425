#!/bin/sh
# Makes .venv: exact versions from requirements/cpu.txt and this package in editable mode. Safe to call again.
set -eu
cd "$(dirname "$0")/.."

usable='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'

find_python() { # prints the first usable interpreter that can make environments; explains on stderr when there is none
    without_venv=''
    for candidate in python3.11 python3.12 python3 python; do
        "$candidate" -c "$usable" 2>/dev/null || continue
        "$candidate" -c 'import venv, ensurepip' 2>/dev/null && echo "$candidate" && return
        without_venv=$candidate
    done
    if [ -n "$without_venv" ]; then
        echo "error: $without_venv cannot make environments (Debian, Ubuntu: apt-get install python3-venv)" >&2
    else
        echo "error: no Python 3.11 or 3.12 found (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2
    fi
    return 1
}

if ! { .venv/bin/python -c "$usable" && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
    base=$(find_python)
    echo "making .venv with $("$base" --version)"
    rm -rf .venv
    "$base" -m venv .venv
fi

# --no-deps: the list is complete and exact, so no resolver runs.
install() { .venv/bin/python -m pip install --disable-pip-version-check --quiet --quiet --no-deps "$@"; }

torch=$(grep '^torch==' requirements/cpu.txt)
if ! .venv/bin/python -m pip freeze 2>/dev/null | grep -q "^$torch"; then
    # Where the configured index has the build without CUDA, that one (name an index that has it in
    # PIP_EXTRA_INDEX_URL); otherwise the default build, which needs its own dependencies.
    echo "installing $torch"
    install "$torch+cpu" 2>/dev/null || .venv/bin/python -m pip install --disable-pip-version-check --quiet "$torch"
fi
echo "installing requirements/cpu.txt (takes minutes the first time)"
install --requirement requirements/cpu.txt
install --no-build-isolation --editable .
