#!/usr/bin/env bash
# Score on N processes of this machine (GPUs with NCCL, or CPU processes with gloo):
#   bash dist_val.sh N CONFIG --weights W [arguments of val.py]
# Relative paths start at the current folder.
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT on each.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash dist_val.sh N CONFIG --weights W [arguments of val.py]" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$root/scripts/runtime/torchrun.sh" "$1" val.py --config "$2" "${@:3}"
