#!/bin/bash
# Installs Debian packages, and only those that are missing: install-missing.sh CHECK[=PACKAGE] ...
# CHECK is a program, the path of a file, or NAME.pc for a library that pkg-config knows. PACKAGE is its package, if
# that has another name.
# Does nothing, and needs no privilege, where nothing is missing.
set -euo pipefail

missing=()
for wanted in "$@"; do
    check=${wanted%%=*}
    package=${wanted#*=}
    case $check in
        *.pc) pkg-config --exists "${check%.pc}" 2>/dev/null || missing+=("$package") ;;
        /*) [ -e "$check" ] || missing+=("$package") ;;
        *) command -v "$check" >/dev/null || missing+=("$package") ;;
    esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing, and there is no apt-get to install them with: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "missing: as root, apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -qq -y \
    --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "cannot install ${missing[*]}" >&2
    exit 1
fi
