#!/bin/bash
# Creates the virtual environment FOLDER with the newest Python >= 3.11 there is, or with $PYTHON:
# make-venv.sh FOLDER. Installs Debian's venv package where Python comes without one.
set -euo pipefail

folder=$1

fits() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=
for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}; do
    if fits "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "no Python >= 3.11 found: install one, or name it in PYTHON" >&2; exit 1; }

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$(dirname "$0")/install-missing.sh" "ensurepip-of-python$version=python$version-venv"
fi
echo "creating $folder with $("$python" --version)" >&2
rm -rf "$folder"
"$python" -m venv "$folder"
