# vgpud in a container of its own, for a QEMU outside of it. The sockets are in /run/vgpud, which the run line shares
# with QEMU; --user makes them the sockets of the user who runs QEMU:
#
#   docker build --tag vgpud .
#   mkdir -p /tmp/vgpud
#   docker run --rm --network none --read-only --user "$(id -u):$(id -g)" --volume /tmp/vgpud:/run/vgpud vgpud
#
# Then QEMU connects to /tmp/vgpud/device.sock. BASE_IMAGE is any image with Python >= 3.11 and its venv module.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /source
COPY . .
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE}
COPY --from=build /wheels /wheels
RUN python3 -m venv /opt/vgpud \
    && /opt/vgpud/bin/python -m pip install --no-cache-dir --no-compile /wheels/*.whl \
    && /opt/vgpud/bin/python -m compileall -q /opt/vgpud/lib \
    && rm -r /wheels \
    && useradd --system --no-create-home --home-dir / --shell /usr/sbin/nologin vgpud \
    && install --directory --owner=vgpud --group=vgpud /run/vgpud
ENV PATH=/opt/vgpud/bin:$PATH PYTHONUNBUFFERED=1
USER vgpud
ENTRYPOINT ["vgpud"]
CMD ["serve", "--socket-path", "/run/vgpud/device.sock", "--control", "/run/vgpud/control.sock"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s \
    CMD ["vgpud", "status", "--control", "/run/vgpud/control.sock"]
