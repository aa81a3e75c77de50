# vitrim for CPU targets. Build and run from the repository's root:
#   docker build -f docker/cpu.Dockerfile -t vitrim-cpu .
#   docker run --rm -v "$PWD/out:/data/out" vitrim-cpu demo --output out/demo
FROM python:3.12-slim-bookworm
RUN useradd --create-home vitrim && mkdir /data && chown vitrim /data
WORKDIR /opt/vitrim
COPY pyproject.toml README.md LICENSE vitrim.py ./
COPY pipeline pipeline
COPY stages stages
COPY targets targets
COPY recipes recipes
RUN pip install --no-cache-dir -e ".[cpu,openvino]"
# Ours come first, whatever else is installed: the names of the packages are generic.
ENV PYTHONPATH=/opt/vitrim VITRIM_STORE=/data/store
USER vitrim
WORKDIR /data
ENTRYPOINT ["vitrim"]
CMD ["--help"]
