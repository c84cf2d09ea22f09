#!/usr/bin/env bash
# Create .venv and install everything that the project needs; completed steps are skipped.
#
#   OPUS_PYTHON      interpreter for a new .venv (default: the first of python3.11, 3.10, 3.12)
#   OPUS_DEVICE      cpu | cuda (default: cuda if nvidia-smi lists a GPU)
#   OPUS_WHEEL_DIR   folder for built mmcv wheels, with a subfolder per torch build and Python
#   OPUS_SPCONV      spconv requirement for CUDA machines, e.g. spconv-cu126==2.3.8 (default: none)
#   OPUS_MMCV_CUDA=1 build mmcv's operations for CUDA too (no part of the project needs them)
#   TORCH_INDEX_URL  package index for torch and torchvision
#   MAX_JOBS         parallel compile jobs (default: one per core and 2 GB of memory)
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS ...) apply as usual.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT"
VENV="$ROOT/.venv"
STAMPS="$VENV/.setup"
PY="$VENV/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

die() { echo "setup: $*" >&2; exit 1; }

# ---------------------------------------------------------------- the machine
find_python() {
  local candidate
  for candidate in ${OPUS_PYTHON:-python3.11 python3.10 python3.12 python3}; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
        >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.10 - 3.12 with the venv module found; install python3.11 and python3.11-venv" \
    "or name one with OPUS_PYTHON=/path/to/python"
}

device() {
  if [ -n "${OPUS_DEVICE:-}" ]; then
    case "$OPUS_DEVICE" in cpu | cuda) echo "$OPUS_DEVICE" ;;
      *) die "OPUS_DEVICE is '$OPUS_DEVICE', expected cpu or cuda" ;;
    esac
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo cuda
  else
    echo cpu
  fi
}

default_jobs() {
  local cores memory_gb
  cores=$(nproc 2>/dev/null || echo 2)
  memory_gb=$(awk '/MemAvailable/ {print int($2 / 2097152)}' /proc/meminfo 2>/dev/null || echo "$cores")
  [ "$memory_gb" -ge 1 ] || memory_gb=1
  echo $((cores < memory_gb ? cores : memory_gb))
}

# ---------------------------------------------------------------- steps and their stamps
hash_of() { cat "$@" | sha256sum | cut -c1-16; }
first_file() { [ ! -d "$1" ] || find "$1" -maxdepth 1 -name "$2" | LC_ALL=C sort | head -n 1; }

# A step is done if its stamp contains the key of its inputs.
is_done() { [ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]; }
mark_done() { printf '%s' "$2" >"$STAMPS/$1"; }

# run TITLE LOGNAME COMMAND...: print condensed output; on failure, the end of the full log.
run() {
  local title=$1 log="$STAMPS/$2.log"
  shift 2
  if ! "$@" 2>&1 </dev/null | "$PY" "$ROOT/scripts/build/setup_progress.py" --title "$title" --log "$log"; then
    echo "---- the end of $log" >&2
    tail -n 40 "$log" >&2
    die "'$title' failed; the full output is in $log"
  fi
}

pip_install() { "$PY" -m pip install --progress-bar off "${CONSTRAINTS[@]}" "$@"; }

# ---------------------------------------------------------------- the environment
mkdir -p "$(dirname "$VENV")"
if ! [ -x "$PY" ]; then
  python=$(find_python)
  echo "-> new environment .venv from $("$python" --version 2>&1) ($(command -v "$python"))"
  "$python" -m venv "$VENV" || die "could not create .venv; on Debian: apt install python3-venv"
fi
mkdir -p "$STAMPS"
DEVICE=$(device)
export MAX_JOBS=${MAX_JOBS:-$(default_jobs)}
PY_TAG=$("$PY" -c 'import sys; print(f"{sys.version_info[0]}{sys.version_info[1]}")')
LOCK="requirements/lock-py$PY_TAG.txt"
[ -f "$LOCK" ] || die "no $LOCK: .venv has a Python other than 3.10 - 3.12; remove .venv and try again"
CONSTRAINTS=(-c "$LOCK")

# 1. torch and the build tools. An installed torch of the right version is kept.
TORCH_INDEX=()
[ -z "${TORCH_INDEX_URL:-}" ] || TORCH_INDEX=(--index-url "$TORCH_INDEX_URL" --extra-index-url "${PIP_INDEX_URL:-$TORCH_INDEX_URL}")
key="$(hash_of requirements/build.txt requirements/torch.txt "$LOCK")"
if ! is_done torch "$key"; then
  run "build tools" build pip_install -r requirements/build.txt
  run "torch ($DEVICE machine)" torch pip_install "${TORCH_INDEX[@]}" -r requirements/torch.txt
  mark_done torch "$key"
fi
# Read its version file, because importing it takes seconds.
read -r TORCH TORCH_CUDA < <("$PY" - <<'END'
import importlib.util, pathlib, runpy
spec = importlib.util.find_spec("torch")
version = runpy.run_path(str(pathlib.Path(spec.origin).with_name("version.py")))
print(version["__version__"], version.get("cuda") or "")
END
) || die "torch is missing in .venv; remove .venv and try again"
if [ "$DEVICE" = cuda ] && [ -z "$TORCH_CUDA" ]; then
  echo "setup: this machine has a GPU, but torch $TORCH is a CPU build: training will run on the CPU." \
    "Set TORCH_INDEX_URL to an index with CUDA builds, remove .venv, and run make setup again." >&2
  DEVICE=cpu
fi

# 2. mmcv with its operations, from source once per torch build and Python.
#    For the CPU only by default: hidden GPUs make mmcv's setup.py build for the CPU.
MMCV_KIND=""
#    Python's own flags add debug information, which takes two fifths of the build time.
MMCV_ENV=(MMCV_WITH_OPS=1 CUDA_VISIBLE_DEVICES= FORCE_CUDA=0 "CFLAGS=${CFLAGS:-} -g0")
if [ "${OPUS_MMCV_CUDA:-0}" = 1 ]; then
  MMCV_KIND="-cuda"
  MMCV_ENV=(MMCV_WITH_OPS=1 FORCE_CUDA=1 "CFLAGS=${CFLAGS:-} -g0")
fi
WHEELS="${OPUS_WHEEL_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/opus-occupancy/wheels}/torch-$TORCH-cp$PY_TAG$MMCV_KIND"
key="$(hash_of requirements/mmcv.txt)-$TORCH$MMCV_KIND"
if ! is_done mmcv "$key"; then
  # Its requirements (mmengine ...) are installed in step 3; only the wheel is built here.
  mmcv=$(sed -e 's/#.*//' -e '/^\s*$/d' requirements/mmcv.txt)
  wheel=$(first_file "$WHEELS" "mmcv-${mmcv#*==}-*.whl")
  if [ -z "$wheel" ]; then
    mkdir -p "$WHEELS"
    part=$(mktemp -d "$WHEELS/.building.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    run "$mmcv from source with $MAX_JOBS compilers (9 to 12 minutes on two cores, once)" mmcv_build \
      env "${MMCV_ENV[@]}" "$PY" -m pip wheel -v --progress-bar off --no-build-isolation --no-deps \
      --no-cache-dir -w "$part" "$mmcv"
    mv "$part"/mmcv-*.whl "$WHEELS/"
    wheel=$(first_file "$WHEELS" "mmcv-${mmcv#*==}-*.whl")
  fi
  run "mmcv from $wheel" mmcv "$PY" -m pip install --progress-bar off --no-deps --force-reinstall "$wheel"
  mark_done mmcv "$key"
fi

# 3. everything else. Only headless opencv is supported: a full one, installed by an earlier step
#    or a user, shares its files. It is removed and the headless one installed again.
case "$DEVICE" in
  cuda) device_requirements=requirements/cuda.txt ;;
  *) device_requirements=requirements/cpu.txt ;;
esac
key="$(hash_of requirements/packages.txt requirements/openmm.txt requirements/dev.txt \
  requirements/onnx.txt requirements/nvcc.txt "$device_requirements" "$LOCK")-$DEVICE-${OPUS_SPCONV:-}"
if ! is_done packages "$key"; then
  device_list="$STAMPS/device.txt"
  cp "$device_requirements" "$device_list"
  [ -z "${OPUS_SPCONV:-}" ] || { sed -i '/^spconv/d' "$device_list"; echo "$OPUS_SPCONV" >>"$device_list"; }
  run "packages ($DEVICE)" packages pip_install "${TORCH_INDEX[@]/#--index-url/--extra-index-url}" \
    -r requirements/packages.txt -r "$device_list" -r requirements/nvcc.txt \
    -r requirements/dev.txt -r requirements/onnx.txt
  run "mmengine, mmdet, mmdet3d" openmm "$PY" -m pip install --progress-bar off --no-deps \
    -r requirements/openmm.txt
  if "$PY" -m pip show -q opencv-python >/dev/null 2>&1; then
    "$PY" -m pip uninstall -q -y opencv-python
    run "opencv without a display" opencv pip_install --no-deps --force-reinstall \
      "$(sed -n 's/^\(opencv-python-headless==[^ ]*\).*/\1/p' requirements/packages.txt)"
  fi
  mark_done packages "$key"
fi

# 4. make the project importable from any folder: a .pth file in .venv names the checkout.
site=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$ROOT" >"$site/opus_occupancy.pth"

# 5. the project's extension, in place. It is also rebuilt if its library was removed.
key="$(find setup.py scripts/build/native_build.py models/csrc -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-16)"
key="$key-$TORCH-cp$PY_TAG-${OPUS_NATIVE_ARCH:-0}-$DEVICE-${TORCH_CUDA_ARCH_LIST:-}"
if [ -z "$(first_file models/ops '*.so')" ] || ! is_done extension "$key"; then
  # Without a GPU, e.g. in a container build: compile for A100, RTX 40 and L40, H100, and later.
  if [ "$DEVICE" = cuda ] && [ -z "${TORCH_CUDA_ARCH_LIST:-}" ] && ! nvidia-smi -L >/dev/null 2>&1; then
    export TORCH_CUDA_ARCH_LIST="8.0;8.9;9.0+PTX"
  fi
  # Warnings of an untested compiler must not stop a user: -Werror is for developers.
  run "native extension (models/csrc)" extension \
    env OPUS_WERROR="${OPUS_WERROR:-0}" "$PY" setup.py build_ext --inplace
  mark_done extension "$key"
fi

echo "setup: ready (Python $("$PY" -c 'import platform; print(platform.python_version())'), torch $TORCH, $DEVICE)"
