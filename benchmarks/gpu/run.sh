#!/usr/bin/env bash
# Checks, measures and trains on one NVIDIA card, within ten minutes: see README.md beside this file.
#
#   benchmarks/gpu/run.sh [--only NAME,NAME] [--minutes N] [--rehearse] [--out FOLDER] [--release CLONE]
#
#   --only      stages to run, by letter or name, separated by commas
#   --minutes   time for all stages: those that don't fit any more are left out from the end; where there is more time
#               than the stages' limits add up to (560 s), each limit grows in proportion
#   --rehearse  every stage's own code on the CPU at tiny sizes, with Triton in its interpreter
#   --out       folder for a JSON file a stage and the log; default $OUT where it is set, else runs/gpu
#   --release   local clone of the released code of Attention Transfer, to be measured beside this library
#
# PYTHON is the interpreter (python3); WHEELS a folder that wheels.sh made (benchmarks/gpu/wheels).
set -uo pipefail

# Letter, name and limit in seconds, in order of worth.
stages="a right 105
b steps 195
c kernels 90
d training 110
e precision 60"

fail() {
  echo "$1" >&2
  exit 2
}

only="" minutes="" rehearse="" release="" out=${OUT:-runs/gpu}
while (($#)); do
  case $1 in
    --rehearse) rehearse=--rehearse && shift && continue ;;
    --only | --minutes | --out | --release) (($# > 1)) || fail "$1 needs a value" ;;
    *) fail "there is no option $1; see the head of $0" ;;
  esac
  case $1 in
    --only) only=$2 ;;
    --minutes) minutes=$2 ;;
    --out) out=$2 ;;
    --release) release=$2 ;;
  esac
  shift 2
done
[[ $minutes =~ ^([0-9]+(\.[0-9]+)?)?$ ]] || fail "--minutes is $minutes; give a number"
if [[ -n $only ]]; then
  chosen=""
  for name in ${only//,/ }; do
    line=$(awk -v name="$name" '$1 == name || $2 == name' <<<"$stages")
    [[ -n $line ]] || fail "there is no stage $name; choose from $(awk '{printf "%s (%s) ", $1, $2}' <<<"$stages")"
    chosen+="$line"$'\n'
  done
  stages=${chosen%$'\n'}
fi
mkdir -p "$out" 2>/dev/null && [[ -w $out ]] || fail "$out can't be written to; name another folder with --out"
out=$(cd "$out" && pwd)
[[ -z $release || -d $release ]] || fail "there is no folder $release, which --release names"
[[ -z $release ]] || release=$(cd "$release" && pwd)
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "there is no $python; name an interpreter with PYTHON=…"

scratch=$(mktemp -d)
warming=""
trap 'rm -rf "$scratch"' EXIT
wheels=${WHEELS:-benchmarks/gpu/wheels}
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
    --target "$scratch/site" "$wheels"/*.whl || fail "the wheels in $wheels can't be installed; make them anew with wheels.sh"
fi
export PYTHONPATH="$PWD/src:$scratch/site" PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor" TRITON_CACHE_DIR="$scratch/triton"
common=(--out "$out" ${rehearse:+"$rehearse"} ${release:+--release "$release"})

{
  failed=0
  if [[ -n $rehearse ]]; then
    # Two processes, which spare the imports of the others: the kernels and what trains take about as long.
    rehearsing=()
    for group in "right steps kernels" "training precision"; do
      names=$(awk -v group=" $group " 'index(group, " " $2 " ") {print $2}' <<<"$stages")
      [[ -n $names ]] || continue
      # shellcheck disable=SC2086 # several names
      TRITON_INTERPRET=1 OMP_NUM_THREADS=1 "$python" -m benchmarks.gpu.stage $names "${common[@]}" &
      rehearsing+=($!)
    done
    for process in "${rehearsing[@]}"; do
      wait "$process" || failed=$?
    done
  else
    total=$(awk '{sum += $3} END {print sum}' <<<"$stages")
    scaled() { awk -v s="$1" -v m="${minutes:-0}" -v t="$total" 'BEGIN {print int(m * 60 > t ? s * m * 60 / t : s)}'; }
    left=$(awk -v m="${minutes:-0}" -v t="$total" 'BEGIN {print int(m > 0 ? m * 60 : t)}')
    while read -r letter name seconds; do
      limit=$(scaled "$seconds")
      if ((limit > left)); then
        echo "stage $letter, $name, needs up to $limit s and is left out"
        continue
      fi
      ((left -= limit))
      if [[ $name == right && $stages == *" steps "* ]]; then # compiles meanwhile what stage b will time
        TORCHINDUCTOR_COMPILE_THREADS=4 timeout -k 5 "$((limit + 30))" "$python" -m benchmarks.gpu.stage --warm steps "${common[@]}" >"$scratch/warm.log" 2>&1 &
        warming=$!
      elif [[ $name == steps && -n $warming ]]; then
        wait "$warming" || echo "compiling beforehand did not come to its end"
        warming=""
        tail -n 40 "$scratch/warm.log"
      fi
      timeout -k 5 "$limit" "$python" -m benchmarks.gpu.stage "$name" --seconds "$limit" "${common[@]}" </dev/null
      case $? in
        0) ;;
        2)
          [[ -z $warming ]] || kill "$warming"
          exit 2
          ;;
        124 | 137) failed=1 && echo "stage $letter, $name, ran over its $limit s and was stopped; its rows so far are kept" ;;
        *) failed=1 && echo "stage $letter, $name, did not come to its end; its rows so far are kept" ;;
      esac
    done <<<"$stages"
  fi
  ((failed != 2)) || exit 2
  "$python" benchmarks/gpu/summary.py "$out" || failed=1
  exit "$failed"
} 2>&1 | tee "$out/log.txt"; exit "${PIPESTATUS[0]}" # on one line: bash reads on here, and the file may be another by now
