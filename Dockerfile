# SPDX-License-Identifier: Apache-2.0
#
#   docker build -t gsbids .                                        for processors
#   docker build -t gsbids:gpu --build-arg VARIANT=gpu .            for NVIDIA GPUs as well
#   docker run --rm -v DATA:/data:ro -v OUT:/out gsbids /data /out participant -w /out/work
#
# Runs as any user (--user 1234:1234) and with a read-only root (--read-only), as Apptainer does: see docs/clusters.md.
#
# Build arguments
#   VARIANT       cpu: the CPU build of torch; gpu: the CUDA builds of torch and of numba's kernels
#   BASE          Debian 12, or an image built on it (another registry, another certificate)
#   TORCH_INDEX   where pip finds the CPU build of torch
#   PIP_ARGS      passed to pip
#   PRECOMPILE    no: kernels are compiled at the first use instead (emulated builders)
#   VERSION, VCS_REF, BUILD_DATE, SOURCE   what the labels say

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS python
# libgomp1: numba's threads.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3.11 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# What gsbids needs: the large layer, which changes with setup.cfg and constraints.txt only.
FROM python AS dependencies
ARG VARIANT=cpu
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
ARG PIP_ARGS=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.11-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && python3.11 -m venv /opt/pip \
    && python3.11 -m venv --without-pip /opt/gsbids
WORKDIR /src
COPY setup.cfg constraints.txt container/requirements.py ./
# Removed: tests of other people, and what torch has for compiling extensions.
RUN set -e; \
    case "${VARIANT}" in \
        cpu) extra=""; index="${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}}" ;; \
        gpu) extra="gpu"; index="" ;; \
        *) echo "VARIANT=${VARIANT}: cpu or gpu" >&2; exit 1 ;; \
    esac; \
    python3.11 requirements.py ${extra} > requirements.txt; \
    /opt/pip/bin/pip --python /opt/gsbids/bin/python install --no-cache-dir --disable-pip-version-check \
        ${index} ${PIP_ARGS} -c constraints.txt -r requirements.txt; \
    cd /opt/gsbids/lib/python3.11/site-packages; \
    find . -depth -type d \( -name tests -o -name test \) -exec rm -rf {} +; \
    find torch/bin -type f ! -name torch_shm_manager -delete; \
    rm -rf torch/include torch/share torch/lib/*.a

FROM dependencies AS build
ARG PIP_ARGS="" PRECOMPILE=yes
COPY . .
RUN /opt/pip/bin/pip wheel --no-cache-dir --disable-pip-version-check ${PIP_ARGS} --no-deps -w /wheels . \
    && /opt/pip/bin/pip --python /opt/gsbids/bin/python install --no-deps --no-index /wheels/gsbids-*.whl \
    && mkdir -p /opt/gsbids/cache \
    && if [ "${PRECOMPILE}" = yes ]; then /opt/gsbids/bin/python container/precompile.py /opt/gsbids/cache; fi \
    && mkdir /layer \
    && cd / \
    && cp -a --parents opt/gsbids/bin/gsbids opt/gsbids/lib/python3.11/site-packages/gsbids* opt/gsbids/cache /layer

FROM python AS runtime
ARG VERSION="unknown"
ARG VCS_REF="unknown"
ARG BUILD_DATE="unknown"
ARG SOURCE="unknown"
LABEL org.opencontainers.image.title="gsbids" \
      org.opencontainers.image.description="Slice-to-volume reconstruction of brain MRI with 3D Gaussians, as a BIDS-App" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${VCS_REF}" \
      org.opencontainers.image.created="${BUILD_DATE}" \
      org.opencontainers.image.source="${SOURCE}"
RUN useradd --create-home --shell /bin/bash --uid 1000 gsbids
COPY --from=dependencies /opt/gsbids /opt/gsbids
COPY --from=build /layer /
# What is written besides the outputs goes to the work folder, from where compiled kernels are loaded too: /tmp may be
# read-only, or shared with strangers (gsbids/cli/places.py).
# LOGNAME: a foreign uid has no name, and nipype's Slurm plugin asks for it.
ENV PATH=/opt/gsbids/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    GSBIDS_CACHE=/opt/gsbids/cache \
    LOGNAME=gsbids \
    LANG=C.UTF-8 \
    NO_ET=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GSBIDS_CONTAINER="gsbids:${VERSION}"
USER gsbids
WORKDIR /tmp
ENTRYPOINT ["/opt/gsbids/bin/gsbids"]
CMD ["--help"]
