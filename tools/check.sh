#!/usr/bin/env bash
# Sets up (with the tools for developers), then lint, format, types and tests. Arguments go to pytest.
# Without arguments, the tests that compare roundings run once more for each older kind of processor.
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
    case $("$python" -c 'import torch; print(torch.backends.cpu.get_cpu_capability())') in
    AVX512) set -- default avx2 ;;
    AVX2) set -- default ;;
    *) set -- ;;
    esac
    # torch's own kernels obey the first variable, those of MKL and oneDNN the others.
    for kernels in "$@"; do
        case $kernels in
        default) others=(MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41) ;;
        avx2) others=(MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2) ;;
        esac
        run "pytest with $kernels kernels" \
            env ATEN_CPU_CAPABILITY="$kernels" "${others[@]}" "${pytest[@]}" -m kernels $files
    done
}
if [ $# -eq 0 ]; then
    older_kernels
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
echo "check: all passed"
