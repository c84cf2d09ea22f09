#!/usr/bin/env bash
# Train on N processes of this machine (GPUs with NCCL, or CPU processes with gloo):
#   bash dist_train.sh N CONFIG [arguments of train.py]
# Relative paths start at the current folder.
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT on each.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash dist_train.sh N CONFIG [arguments of train.py]" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$root/scripts/runtime/torchrun.sh" "$1" train.py --config "$2" "${@:3}"
