# The sidecar as a container image: one static binary, chaperonectl beside it, and the
# public certificate authorities. It has no shell.
#
#   make image
#   docker run --rm chaperone:VERSION version
#
# It runs as user 65532, which suffices beside Envoy and as a proxy with
# `kernel: off`. A sidecar of running processes needs root and the host's view of cgroups:
#
#   docker run --user 0 --cgroupns=host --pid=host --network=host \
#     --cap-drop=ALL --cap-add=BPF --cap-add=NET_ADMIN --cap-add=PERFMON \
#     -v /sys/fs/cgroup:/sys/fs/cgroup -v /sys/fs/bpf:/sys/fs/bpf \
#     chaperone:VERSION serve --config FILE --cgroup PATH
#
# `chaperone run` starts a plugin and so needs the plugin's files beside it: copy
# the binary into the plugin's own image rather than the plugin into this one.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN mkdir -p /image/usr/bin && CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags "-s -w -X main.version=$VERSION" -o /image/usr/bin/ ./cmd/chaperone ./cmd/chaperonectl
RUN mkdir -p -m 0755 /image/etc/ssl/certs && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && echo 'root:x:0:0::/:/none' >/image/etc/passwd \
    && echo 'chaperone:x:65532:65532::/:/none' >>/image/etc/passwd \
    && mkdir -m 1777 /image/tmp \
    && install -d -m 0700 -o 65532 -g 65532 /image/var/lib/chaperone /image/run/chaperone

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENTRYPOINT ["/usr/bin/chaperone"]
CMD ["help"]
