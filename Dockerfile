# Sluice and the modules that ship with it. Needs BuildKit (on by default since Docker 23; before, set
# DOCKER_BUILDKIT=1):
#
#   docker build -t sluice:dev .
#
# Not in the image: libchdb (566 MB), so no `sluice demo` and no `sluice clickhouse`.

FROM rust:1.95-bookworm AS builder
RUN rustup target add wasm32-unknown-unknown
WORKDIR /source
COPY . .
# The registry and the target folder stay between builds: a change of ours compiles only what is ours.
# Line tables go, symbols stay: a backtrace still names its functions.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked -p sluice && \
    deploy/modules.sh build && \
    mkdir -p /result/etc /result/modules && \
    strip --strip-debug -o /result/sluice target/release/sluice && \
    cp -r target/modules/purchases /result/modules/ && \
    cp -r config/sluice.yaml config/migrations /result/etc/ && \
    sed -i 's:\.\./target/modules:/var/lib/sluice/modules:' /result/etc/sluice.yaml

FROM debian:bookworm-slim
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates libssl3 && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* && \
    groupadd --gid 10001 sluice && \
    useradd --uid 10001 --gid sluice --no-create-home --home-dir /var/lib/sluice --shell /usr/sbin/nologin sluice
# A volume that is mounted here belongs to its user, too.
RUN install --directory --owner=10001 --group=10001 --mode=700 /var/cache/sluice
COPY --from=builder /result/sluice /usr/local/bin/sluice
COPY --from=builder /result/etc /etc/sluice
# The modules twice: where they are used, and a pristine copy for whoever mounts a folder of their own there.
COPY --from=builder /result/modules /usr/share/sluice/modules
COPY --from=builder --chown=10001:10001 /result/modules /var/lib/sluice/modules

USER 10001:10001
WORKDIR /var/lib/sluice
# Inside a container, loopback is of no use to anybody.
ENV SLUICE__ADMIN__LISTEN=0.0.0.0:9464
# Of every command, so that `docker-compose exec sluice sluice module status` finds it, too.
ENV SLUICE_CONFIG=/etc/sluice/sluice.yaml
EXPOSE 9464
STOPSIGNAL SIGTERM
# Alive, not ready: a Sluice that waits for ClickHouse is well, and restarting it would not help.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/${SLUICE__ADMIN__LISTEN##*:} && printf 'GET /live HTTP/1.0\\r\\n\\r\\n' >&3 && read -r status <&3 && [[ $status == *' 200 '* ]]"]
ENTRYPOINT ["sluice"]
CMD ["run"]
