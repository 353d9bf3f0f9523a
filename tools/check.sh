#!/usr/bin/env bash
# Sets up (with the tools for developers), then lint, format, types and tests. Arguments go to pytest.
# Without arguments, the tests that compare roundings run once more as on each older processor.
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
pytest=("$python" -m pytest -q --numprocesses auto --maxprocesses 4)
run "pytest" "${pytest[@]}" "$@"

# Kernels of another processor add in another order. Told to use those of an older one, this machine
# stands for several; its own are those of the run above.
older_kernels() {
    local files
    files=$(grep --recursive --files-with-matches --include='*.py' 'mark\.kernels' tests)
    # torch's own kernels obey the first variable, those of MKL and oneDNN the others.
    local plain=popen//id=default
    plain+=//env:ATEN_CPU_CAPABILITY=default//env:MKL_CBWR=COMPATIBLE//env:ONEDNN_MAX_CPU_ISA=SSE41
    local avx2=popen//id=avx2
    avx2+=//env:ATEN_CPU_CAPABILITY=avx2//env:MKL_CBWR=AVX2//env:ONEDNN_MAX_CPU_ISA=AVX2
    case $("$python" -c 'import torch; print(torch.backends.cpu.get_cpu_capability())') in
    AVX512) set -- --tx $plain --tx $avx2 ;;
    AVX2) set -- --tx $plain ;;
    *) return ;;
    esac
    # A worker for each kind, side by side, and each runs every test.
    run "pytest with older kernels" "$python" -m pytest -q --dist each "$@" -m kernels $files
}
if [ $# -eq 0 ]; then
    older_kernels
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
echo "check: all passed"
