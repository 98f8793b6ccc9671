#!/bin/bash
# Builds the container of the Dockerfile without a container engine, as root: build-container.sh FOLDER
# Leaves the image's root file system in FOLDER/rootfs, which it prints, and its configuration (entry point, user,
# health check) in FOLDER/image.json.
# The base image is made from the machine's Debian mirror, once, and kept in the cache. What else the machine knows about
# reaching packages (apt's options, pip's indexes, certificates) is lent to the build, and is not in the result.
# Needs buildah and mmdebstrap. PYTHON names the project's interpreter, whose pip is asked for its configuration.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
cache=${VGPUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vgpud}
suite=bookworm

[ "$(id -u)" = 0 ] || { echo "only root can unpack and enter a root file system here" >&2; exit 1; }
for program in buildah mmdebstrap; do
    command -v "$program" >/dev/null || { echo "$program is missing: apt-get install $program" >&2; exit 1; }
done

mkdir -p "$cache"
exec 9>"$cache/.container.lock"
flock 9
rm -rf "$cache"/.container.new-* # what a killed run left: nobody else is here now
work=$(mktemp -d "$cache/.container.new-XXXXXX")
trap 'rm -rf "$work"' EXIT

# Runs buildah on a store of its own. The mounts that it makes go away with it, whatever happens to it, so that removing
# the store can never reach through one into the machine.
store_buildah() {
    TMPDIR=$work unshare --mount buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$@"
}

quietly() {
    "$@" >"$work/log" 2>&1 </dev/null || { tail -n 40 "$work/log" >&2; exit 1; }
}

mirror=${VGPUD_MIRROR:-$("$python" -c 'from server.guest.mirror import debian_mirror; print(debian_mirror())')}
mapfile -t apt_options < <(apt-config dump --format '%F "%v";%n' | grep -E '^Acquire::(https?::.*Proxy|Check-)' || :)
lent_apt_options=/etc/apt/apt.conf.d/99lent
# an empty file for the build to mount the options over, and nothing that mmdebstrap took from the machine
clean_base="cd \"\$1/etc\" && rm -f resolv.conf hostname apt/apt.conf.d/99mmdebstrap && touch \"\$1$lent_apt_options\""
bootstrap=(--variant=apt --include=python3,python3-venv,ca-certificates,passwd "--customize-hook=$clean_base")
for unused in man doc locale info lintian; do
    bootstrap+=("--dpkgopt=path-exclude=/usr/share/$unused/*")
done
for option in "${apt_options[@]}"; do
    bootstrap+=("--aptopt=$option")
done
recipe=$(printf '%s\n' "$suite" "$mirror" "${bootstrap[@]}" | sha256sum)
base=$cache/container-base-${recipe:0:12}.tar

if [ ! -e "$base" ]; then
    echo "making the base image of Debian $suite" >&2
    quietly mmdebstrap "${bootstrap[@]}" "$suite" "$work/base.tar" "$mirror"
    container=$(store_buildah from scratch)
    quietly store_buildah add "$container" "$work/base.tar" /
    quietly store_buildah commit --rm "$container" "oci-archive:$work/base.oci.tar"
    mv "$work/base.oci.tar" "$base"
    rm "$work/base.tar"
    rm -rf "$work/store" "$work/run"
fi

printf '%s\n' "${apt_options[@]}" >"$work/apt.conf"
lent=(--volume "$work/apt.conf:$lent_apt_options:ro")
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
if [ -e "$certificates" ]; then
    lent+=(--volume "$certificates:/etc/ssl/certs/ca-certificates.crt:ro")
fi
# pip's indexes: what is in the environment wins, and one on this machine's disk is not seen from inside
for setting in index-url extra-index-url; do
    variable=${setting^^}
    variable=PIP_${variable//-/_}
    indexes=()
    for index in ${!variable-$("$python" -m pip config get "global.$setting" 2>/dev/null || :)}; do
        [[ $index == file://* ]] || indexes+=("$index")
    done
    [ ${#indexes[@]} = 0 ] || lent+=(--build-arg "$variable=${indexes[*]}")
done

echo "building the container" >&2
quietly store_buildah pull "oci-archive:$base"
base_image=$(store_buildah images --quiet)
# the format is Docker's because the other has no health check
quietly store_buildah build --isolation chroot --format docker --pull-never "${lent[@]}" \
    --build-arg "BASE_IMAGE=$base_image" --tag vgpud --output "type=local,dest=$work/rootfs" .
store_buildah inspect --type image vgpud |
    "$python" -c 'import json, sys; json.dump(json.load(sys.stdin)["Docker"]["config"], sys.stdout, indent=1)' \
        >"$work/image.json"

rm -rf "$folder/rootfs"
chmod 755 "$work/rootfs"
mv "$work/rootfs" "$work/image.json" "$folder"
echo "$folder/rootfs"
