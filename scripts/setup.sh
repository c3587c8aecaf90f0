#!/usr/bin/env bash
# setup.sh demo|dev VENV PYTHON: a virtual environment with this project in it, editable.
#
# What was installed is known by the content of what asked for it, not by file times,
# so a fresh clone, another branch, another interpreter and a moved folder are told apart.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
extra=$1 venv=$2 python=$3

digest() { sha256sum | cut -d ' ' -f 1; }
recorded() { cat -- "$venv/.clustrix-$1" 2> /dev/null || true; }
record() {
    printf '%s\n' "$2" > "$venv/.clustrix-$1.new"
    mv -- "$venv/.clustrix-$1.new" "$venv/.clustrix-$1"
}

command -v -- "$python" > /dev/null || {
    echo "setup: no '$python' here: install Python 3.10 or newer, or name one with PYTHON=" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $("$python" -V) is too old: 3.10 or newer is needed; name one with PYTHON=" >&2
    exit 1
}
# An environment points at its interpreter, and at this folder, by absolute paths.
base=$({ "$python" -c 'import sys; print(sys.version, sys.base_prefix)' && pwd; } | digest)
asked=$(cat pyproject.toml scripts/setup.sh | digest)
if [ "$(recorded base)" = "$base" ] && [ -x "$venv/bin/python" ]; then
    # Whatever the demo needs is in dev, too.
    for have in "$extra" dev; do
        [ "$(recorded "$have")" != "$asked" ] || exit 0
    done
fi

"$python" -c 'import ensurepip, venv' 2> /dev/null || {
    echo "setup: '$python' cannot make virtual environments: on Debian and Ubuntu," \
        "apt-get install python3-venv; or name another interpreter with PYTHON=" >&2
    exit 1
}
echo "setup: installing into $venv (about a minute the first time)" >&2
start=$SECONDS
if [ "$(recorded base)" != "$base" ] || [ ! -x "$venv/bin/python" ]; then
    # Only an environment that this script has made is emptied; another one is added to.
    clear=()
    [ -z "$(recorded base)" ] || clear=(--clear)
    "$python" -m venv "${clear[@]}" -- "$venv"
    record base "$base"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
record "$extra" "$asked"
echo "setup: done in $((SECONDS - start)) s" >&2
