# syntax=docker/dockerfile:1
# setr serve in a container, without root.
#
#   docker build -t setr --build-arg TORCH_INDEX=ADDRESS .    CPU: ADDRESS of torch's CPU wheels, see pytorch.org
#   docker build -t setr:cuda .                               CUDA: the plain wheels bring their own libraries
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/demo:/models/demo:ro" setr /models/demo \
#     --allowed-hosts localhost    without keys: so that web pages under other names get nothing
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v … setr:cuda /models/demo
#
# Everything but `serve` works too: docker run --rm --entrypoint setr setr --help
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/setr
ENV PATH=/opt/setr/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# torch first: it is large, and changes far less often than the source
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch \
    && pip install --constraint constraints.txt torchvision
COPY src src
RUN pip install --constraint constraints.txt ".[serve]"

FROM python:${PYTHON}-slim-bookworm
ARG TORCH_INDEX=
# CUDA only: the training loss is a Triton kernel, and Triton compiles the C code that starts it when
# it is first used. A compiler is little beside the CUDA libraries; without one the loss would have
# to be the slower one.
# hadolint ignore=DL3008
RUN if [ -z "$TORCH_INDEX" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/setr /opt/setr
# two malloc arenas: decoding threads would otherwise keep one each, and resident memory creeps up
ENV PATH=/opt/setr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 \
    HF_HOME=/tmp/huggingface
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp setr
USER 10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
# not urllib: it would ask a proxy of the environment for 127.0.0.1
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/readyz'); exit(c.getresponse().status != 200)"]
# in a container the port is closed until it is published, so listening on all addresses is right
ENTRYPOINT ["setr", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--help"]
