#!/usr/bin/env bash
# torchrun with this project's Python: scripts/runtime/torchrun.sh N SCRIPT [arguments]
set -euo pipefail
processes=$1
shift
case "$processes" in
  '' | *[!0-9]* | 0) echo "the number of processes is '$processes', expected 1 or more" >&2; exit 2 ;;
esac

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi

# torchrun would set 1 thread for each process; share the cores instead.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
  cores=$(nproc 2>/dev/null || echo 1)
  export OMP_NUM_THREADS=$((cores / processes > 0 ? cores / processes : 1))
fi

if [ "${NNODES:-1}" -gt 1 ]; then
  where=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?set NODE_RANK}"
    --master_addr "${MASTER_ADDR:?set MASTER_ADDR}" --master_port "${MASTER_PORT:-29500}")
else
  where=(--standalone)
fi
exec "$python" -m torch.distributed.run "${where[@]}" --nproc_per_node "$processes" "$@"
