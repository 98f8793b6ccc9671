#!/bin/bash
# Builds libvfio-user, which Debian 12's source package of QEMU carries, into the cache, and prints where it is:
# include/, lib/ (shared and static) and bin/ (the samples). Does nothing when it is there already.
# Needs a C compiler, meson, ninja, pkg-config and libjson-c-dev. PYTHON names the project's interpreter.
set -euo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
cache=${VGPUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vgpud}
prefix=$cache/libvfio-user

mkdir -p "$cache"
exec 9>"$cache/.libvfio-user.lock"
flock 9
if [ -e "$prefix/complete" ]; then
    echo "$prefix"
    exit 0
fi

for program in gcc meson ninja pkg-config; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install $program" >&2; exit 1; }
done
pkg-config --exists json-c || { echo "json-c is missing: apt-get install libjson-c-dev" >&2; exit 1; }

work=$(mktemp -d "$cache/.libvfio-user.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/download" "$work/source"
"$python" -m server.guest.source qemu bookworm "$work/download"
tar -xJf "$work"/download/qemu_*.orig.tar.xz -C "$work/source" --strip-components=3 --wildcards \
    '*/subprojects/libvfio-user/*'
# its unit tests and its documentation want more packages, and are of no use here
sed -i -e "/subdir('test')/d" -e "/subdir('docs')/d" -e '/cmocka/d' "$work/source/meson.build"

echo "building libvfio-user" >&2
{
    meson setup "$work/build" "$work/source" --prefix="$prefix" --libdir=lib --buildtype=release \
        --default-library=both
    ninja -C "$work/build"
    DESTDIR="$work/stage" meson install -C "$work/build"
} >"$work/log" 2>&1 </dev/null || { tail -n 20 "$work/log" >&2; exit 1; }

built=$work/stage$prefix
mkdir "$built/bin"
find "$work/build/samples" -maxdepth 1 -type f -executable -exec cp -t "$built/bin" {} +
touch "$built/complete"
rm -rf "$prefix"
mv "$built" "$prefix"
echo "$prefix"
