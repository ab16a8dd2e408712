#!/usr/bin/env bash
# Makes a folder of wheels for a machine without network that has PyTorch and the usual packages of the field: this
# package, and other packages that are named, which such a machine lacks. `run.sh` installs them from there.
#
#   benchmarks/gpu/wheels.sh [FOLDER]      default: benchmarks/gpu/wheels, which git ignores
#
# PACKAGES names those to take along; PYTHON is the interpreter whose pip is used (any version).
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-benchmarks/gpu/wheels}
packages=${PACKAGES:-}
pip=("${PYTHON:-python3}" -m pip --disable-pip-version-check --quiet)

if [[ -n "$(ls -A "$folder" 2>/dev/null)" ]]; then
  echo "$folder is not empty, and two versions of a wheel stop an installation; remove it, or name another folder" >&2
  exit 2
fi
mkdir -p "$folder"
# Wheels for any Python 3: what they need besides is on that machine, or is named above.
# shellcheck disable=SC2086 # several names
[[ -z "$packages" ]] || "${pip[@]}" download --no-deps --only-binary=:all: --implementation py --abi none --platform any --dest "$folder" $packages
"${pip[@]}" wheel --no-deps --wheel-dir "$folder" .
ls -l "$folder"
