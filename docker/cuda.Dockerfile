# vitrim for NVIDIA GPUs: TensorRT, and ONNX Runtime with CUDA and TensorRT. Not yet built. From the repository's root:
#   docker build -f docker/cuda.Dockerfile -t vitrim-cuda .
#   docker run --rm --gpus all -v vitrim:/data vitrim-cuda doctor --target l4
# The base has Ubuntu 24.04, CUDA 13, TensorRT 10.13 with its Python package, which PyPI alone does not have.
FROM nvcr.io/nvidia/tensorrt:25.10-py3 AS build
ARG EXTRAS=cuda
# NVIDIA's images may hold packages at versions of theirs: an environment that sees TensorRT, and is otherwise its own.
ENV PIP_CONSTRAINT=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE vitrim.py ./
COPY pipeline pipeline
COPY stages stages
COPY targets targets
COPY recipes recipes
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/vitrim \
 && /opt/vitrim/bin/pip install --no-cache-dir --disable-pip-version-check ".[${EXTRAS}]" \
 && /opt/vitrim/bin/vitrim --version

FROM nvcr.io/nvidia/tensorrt:25.10-py3
# Ubuntu's images have a user of number 1000 already.
RUN useradd --create-home --uid 1500 vitrim && mkdir /data && chown vitrim:vitrim /data
COPY --from=build /opt/vitrim /opt/vitrim
ENV PATH=/opt/vitrim/bin:$PATH VITRIM_STORE=/data/store PYTHONUNBUFFERED=1
USER 1500
WORKDIR /data
ENTRYPOINT ["vitrim"]
CMD ["--help"]
