# SPDX-License-Identifier: Apache-2.0
#
#   docker build -t gsbids .
#   docker run --rm -v DATA:/data:ro -v OUT:/out gsbids /data /out participant -w /out/work
#
# Runs as any user (--user 1234:1234) and with a read-only root (--read-only --tmpfs /tmp), as Apptainer does.
#
# Build arguments
#   BASE      Debian 12, or an image built on it (another registry, another certificate)
#   EXTRAS    extras of setup.cfg: "gpu" adds the CUDA kernels' packages
#   PIP_ARGS  passed to pip; the default takes the CPU build of torch. For a GPU: --build-arg EXTRAS=gpu
#             --build-arg PIP_ARGS=
#   VERSION, VCS_REF, BUILD_DATE, SOURCE   what the labels say

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
ARG EXTRAS=""
ARG PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3.11 python3.11-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.11 -m venv /opt/gsbids
COPY . /src
RUN cd /src \
    && /opt/gsbids/bin/pip install --no-cache-dir --disable-pip-version-check ${PIP_ARGS} \
        -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}" \
    && /opt/gsbids/bin/gsbids --version

FROM ${BASE} AS runtime
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
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3.11 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --shell /bin/bash --uid 1000 gsbids
COPY --from=build /opt/gsbids /opt/gsbids
# All that is written outside the mounted folders goes to /tmp: the root may be read-only, the user unknown.
# LOGNAME: nipype's Slurm plugin asks for it, and a foreign uid has no name.
ENV PATH=/opt/gsbids/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    NUMBA_CACHE_DIR=/tmp/numba \
    MPLCONFIGDIR=/tmp/matplotlib \
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
