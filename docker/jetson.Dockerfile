# A Jetson as a device of vitrim, in a container: what the agent needs, and an SSH server for it. Not yet built, not yet run
# on hardware. JetPack 6 (TensorRT 10.3); on the board, from the repository's root:
#   docker build -f docker/jetson.Dockerfile -t vitrim-jetson .
#   docker run -d --name vitrim-jetson --runtime nvidia -p 2222:2222 -v vitrim:/home/vitrim \
#     -v "$HOME/.ssh/authorized_keys:/etc/vitrim/authorized_keys:ro" vitrim-jetson
# JetPack 7 (TensorRT 10.13): add to the build  --build-arg BASE=nvcr.io/nvidia/tensorrt:25.10-py3
ARG BASE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime
# hadolint ignore=DL3006
FROM ${BASE}
# The versions are those of the base's Ubuntu release.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends openssh-server python3 python3-numpy \
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
# Without root: an SSH server lets in the user that it runs as. The group `video` may use the GPU of JetPack 6.
RUN useradd --create-home --uid 1500 --shell /bin/bash vitrim && usermod --append --groups video vitrim
COPY --chmod=755 docker/jetson-entrypoint.sh /usr/local/bin/vitrim-device
USER 1500
WORKDIR /home/vitrim
EXPOSE 2222
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["vitrim-device", "check"]
ENTRYPOINT ["vitrim-device"]
CMD ["serve"]
