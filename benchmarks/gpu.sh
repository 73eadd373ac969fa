#!/usr/bin/env bash
# Everything that is measured on a GPU, in under 9 minutes: bash benchmarks/gpu.sh [OUTPUT_DIR]
#
# Nothing need be installed but torch, triton and timm, and nothing is downloaded. The operations are checked first; if they
# are wrong nothing is timed. Each part is a process of its own with its own time, and rows are written as it goes, so that
# one part's failure spoils no other. In a copy of the source without its history FREQFORMER_COMMIT names the commit.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src"
PYTHON=${PYTHON:-python3}
RESULTS=${1:-benchmarks/results}
status=0

part() { # NAME SECONDS
    echo "== $1, $2 s, at ${SECONDS} s"
    # What is begun within the time may end a little after it.
    timeout --kill-after=5 "$(($2 + 20))" "$PYTHON" benchmarks/gpu.py "$1" --seconds "$2" --output-dir "$RESULTS"
}

part check 50 || { echo "the operations are wrong on this GPU: nothing was timed"; exit 1; }
if "$PYTHON" -c "import pytest, hypothesis" 2>/dev/null; then
    echo "== tests/ops/test_triton.py, at ${SECONDS} s"
    timeout --kill-after=5 45 "$PYTHON" -m pytest -q -x -p no:cacheprovider -m "not slow" tests/ops/test_triton.py
    case $? in
        0) ;;
        124 | 137) echo "the tests were stopped after 45 s without a failure; the check above passed" ;;
        *) echo "the tests of the operations fail on this GPU: nothing was timed"; exit 1 ;;
    esac
fi
# 380 s in all; the processes' starts and the check and tests above come on top.
for each in inverse:10 global_filter:110 model:40 train:45 dynamic_filter:50 scaling:50 subquadratic:10 model-compiled:35 train-compiled:30; do
    if [ "$SECONDS" -gt 500 ]; then
        echo "== ${each%:*}: left out, ${SECONDS} s have passed"
        status=1
        continue
    fi
    part "${each%:*}" "$((SECONDS + ${each#*:} > 505 ? 505 - SECONDS : ${each#*:}))" || { echo "== ${each%:*} failed"; status=1; }
done
echo "== done at ${SECONDS} s, rows in $RESULTS"
exit $status
