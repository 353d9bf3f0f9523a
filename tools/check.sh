#!/usr/bin/env bash
# Sets up (with the tools for developers), then lint, format, types and tests. Arguments go to pytest.
# Every check runs even if an earlier one fails; the exit code says whether all passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh --dev
python=$(tools/setup.sh --which)

failed=()
run() {
    echo "check: $1"
    "${@:2}" || failed+=("$1")
}

run "ruff check" "$python" -m ruff check .
run "ruff format" "$python" -m ruff format --check .
run "pyright" "$python" -m pyright --pythonpath "$python"
# One thread per worker: torch's own threads would only fight the other workers for the cores.
export OMP_NUM_THREADS=1
run "pytest" "$python" -m pytest -q --numprocesses auto --maxprocesses 4 "$@"

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
echo "check: all passed"
