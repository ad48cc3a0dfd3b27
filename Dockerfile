# Malmoi in an image. Commands: docs/images.md
#   docker build --build-arg DEVICE=cpu -t malmoi:cpu .
#   docker build --build-arg DEVICE=cuda -t malmoi:cuda .
FROM python:3.11-slim-bookworm

# cpu, or cuda: torch with CUDA's libraries, so that the host needs its driver alone.
ARG DEVICE=cpu
ARG EXTRAS=dask,dedup,eval,finetune,judge,serve,trackers

# A compiler, which torch.compile and Triton call when they run. Debian keeps only the newest version of a package, so that
# a pinned one could not be installed for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/malmoi
COPY constraints.txt .
RUN case "$DEVICE" in \
      cpu) set -- --extra-index-url https://download.pytorch.org/whl/cpu ;; \
      cuda) set -- ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --constraint constraints.txt "$@" torch

COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

# Any user may be given with --user: their home and the working directory are open to all, and USER is a name for the ids
# that /etc/passwd lacks.
RUN useradd --create-home --uid 1000 malmoi \
    && chmod 1777 /home/malmoi \
    && install --directory --mode=1777 /work
ENV HOME=/home/malmoi USER=malmoi LANG=C.UTF-8
USER 1000:1000
WORKDIR /work

ENTRYPOINT ["malmoi"]
CMD ["doctor"]
