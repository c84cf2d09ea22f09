#!/usr/bin/env bash
# Run the tests of the CUDA kernels under NVIDIA's compute-sanitizer: out-of-bounds and misaligned
# accesses, races in shared memory, reads of uninitialised memory, invalid barriers.
# Needs a GPU, a CUDA toolkit and an extension built with it. Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PY=${PY:-.venv/bin/python}
SANITIZER=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
[ -x "$SANITIZER" ] || { echo "compute-sanitizer: not found; it is part of the CUDA toolkit" >&2; exit 1; }
"$PY" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "compute-sanitizer: torch finds no CUDA device" >&2; exit 1; }
export OPUS_HYPOTHESIS_EXAMPLES=${OPUS_HYPOTHESIS_EXAMPLES:-3} PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck initcheck synccheck; do
  echo "== $tool"
  "$SANITIZER" --tool "$tool" --target-processes all --error-exitcode 1 \
    "$PY" -m pytest -q -p no:cacheprovider tests/ops -k "cuda and not cuda_sources and not 32_bits" "$@"
done
