#!/usr/bin/env bash
# Sets fastgen up in .venv, or in the virtual or conda environment that is active. See `tools/setup.sh --help`.
# This part only finds a Python that can run tools/setup_env.py, which does the work.
set -euo pipefail

# The script's own folder must be on its path: it comes in several files.
unset PYTHONSAFEPATH

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# PYTHON=/path/to/python chooses the interpreter; otherwise the first one on PATH that is new enough.
for python in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13 python3.10 python3.14 python; do
    if new_enough "$python"; then
        exec "$python" "$tools/setup_env.py" "$@"
    fi
    if [ -n "${PYTHON:-}" ]; then
        break
    fi
done
found=$("${PYTHON:-python3}" --version 2>&1) || found="none that runs"
echo "setup: fastgen needs Python 3.10 or newer, found ${PYTHON:-python3}: $found; install a newer one, or name it: PYTHON=/path/to/python3.12 tools/setup.sh" >&2
exit 1
