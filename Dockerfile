# vgpud in a container of its own, for a QEMU outside of it. The sockets are in /run/vgpud, which the container shares
# with the host. --user makes them the sockets of the user who runs QEMU; without it the container runs as its own user
# vgpud, who must be able to write there.
#
#   docker build --tag vgpud .
#   sudo install --directory --owner "$(id -u)" /run/vgpud
#   docker run --rm --network none --read-only --user "$(id -u):$(id -g)" -v /run/vgpud:/run/vgpud vgpud \
#       serve --socket-path /run/vgpud/device.sock --control /run/vgpud/control.sock
#   qemu-system-x86_64 -m 2G \
#       -object memory-backend-memfd,id=mem,size=2G,share=on \
#       -machine q35,memory-backend=mem \
#       -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/run/vgpud/device.sock"}}'
#
# BASE_IMAGE is any Debian (apt-get, ca-certificates) with Python >= 3.11 and its venv module. Whoever builds says where
# packages come from: apt's mirror is that of the base image, pip's indexes are the build arguments PIP_INDEX_URL and
# PIP_EXTRA_INDEX_URL, and proxies are build arguments that every builder knows (http_proxy, https_proxy).
# scripts/build-container.sh builds this without a container engine, on a base that it makes.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS libvfio-user
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends \
        gcc libc6-dev libjson-c-dev meson ninja-build pkg-config xz-utils
WORKDIR /source
COPY scripts/build-libvfio-user.sh scripts/
COPY server/__init__.py server/
COPY server/guest server/guest
# installed under its soname, and not as a link, because builders disagree on what copying a link copies
RUN folder=$(PYTHON=python3 VGPUD_CACHE=/cache scripts/build-libvfio-user.sh) \
    && install -D --strip "$folder/lib/libvfio-user.so.0" /library/libvfio-user.so.0

FROM ${BASE_IMAGE} AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY . .
# the compiled files are taken as they are: their sources may get other dates on the way into the next stage
RUN python3 -m venv /tools \
    && python3 -m venv --without-pip /opt/vgpud \
    && /tools/bin/python -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /tools/bin/python -m pip --python /opt/vgpud/bin/python install --quiet --no-cache-dir --no-compile \
        "$(echo /wheels/*.whl)[metrics]" \
    && /opt/vgpud/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/vgpud/lib

FROM ${BASE_IMAGE}
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends libjson-c5 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
    && useradd --system --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin vgpud \
    && install --directory --owner=vgpud --group=vgpud /run/vgpud
COPY --from=libvfio-user /library /usr/local/lib
COPY --from=wheel /opt/vgpud /opt/vgpud
ENV PATH=/opt/vgpud/bin:$PATH PYTHONUNBUFFERED=1 VGPUD_LIBVFIO_USER=/usr/local/lib/libvfio-user.so.0
USER vgpud
ENTRYPOINT ["vgpud"]
CMD ["serve", "--socket-path", "/run/vgpud/device.sock", "--control", "/run/vgpud/control.sock"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s \
    CMD ["vgpud", "status", "--control", "/run/vgpud/control.sock"]
