#!/bin/sh
# Everything that is to be known on a lent GPU, in under nine minutes:  bench/gpu_session.sh OUT
# The suites of `tilewright bench` instead, as reports:                 bench/gpu_session.sh OUT --reports
# Without a GPU, everything tiny under Triton's interpreter:            bench/gpu_session.sh --dry OUT
# It needs this checkout, Python >= 3.11 with torch, triton and cupy, and build/gpu_site (make gpu-site)
# for the pure Python packages that such a machine lacks. JSON and logs are written as it goes.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
[ "${1:-}" = --dry ] || export PYTHONPATH="$PYTHONPATH:$PWD/build/gpu_site"
exec "$PYTHON" -m tilewright.bench.gpu_session "$@"
