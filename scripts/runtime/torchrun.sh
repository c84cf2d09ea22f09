#!/usr/bin/env bash
# Start N processes with this project's Python: scripts/runtime/torchrun.sh N SCRIPT [arguments]
# SCRIPT is relative to the checkout; all other relative paths start at the current folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python
  [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.runtime.torchrun "$1" "$root/$2" "${@:3}"
