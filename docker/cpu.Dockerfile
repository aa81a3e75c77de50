# vitrim for CPU targets: build, measure, validate. Not yet built. From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t vitrim-cpu .
#   docker run --rm -v vitrim:/data vitrim-cpu demo
FROM python:3.12-slim-bookworm AS build
# Extras of pyproject.toml; add nightly for `vitrim nightly`.
ARG EXTRAS=cpu,openvino
WORKDIR /src
COPY pyproject.toml README.md LICENSE vitrim.py ./
COPY pipeline pipeline
COPY stages stages
COPY targets targets
COPY recipes recipes
RUN python -m venv /opt/vitrim \
 && /opt/vitrim/bin/pip install --no-cache-dir --disable-pip-version-check ".[${EXTRAS}]" \
 && /opt/vitrim/bin/vitrim --version

FROM python:3.12-slim-bookworm
# The user owns /data: the store, and where reports and bundles go. A named volume takes that over.
RUN useradd --create-home --uid 1000 vitrim && mkdir /data && chown vitrim:vitrim /data
COPY --from=build /opt/vitrim /opt/vitrim
ENV PATH=/opt/vitrim/bin:$PATH VITRIM_STORE=/data/store PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
ENTRYPOINT ["vitrim"]
CMD ["--help"]
