# syntax=docker/dockerfile:1
# Jobcast as a container: one static binary on an empty image, for amd64 and arm64.
#
#   docker build -t jobcast .
#   docker buildx build --platform linux/amd64,linux/arm64 -t registry.example.org/jobcast --push .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8080:8080 jobcast demo --listen 0.0.0.0:8080 --allow-anonymous
#
# What it writes is the SQLite file, in /data: -v jobcast:/data. With PostgreSQL or Redis it writes nothing.
#
# The compiler runs on the machine's own architecture and makes code for the one that is asked for.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95-slim-bookworm AS build
# Set by the builder. A default here would win over that.
ARG TARGETARCH
WORKDIR /build
COPY deploy/container/target.sh .
RUN ./target.sh install "$TARGETARCH"

# The dependencies make a layer of their own, which stays good until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && ./target.sh build "$TARGETARCH" \
    && rm -r src
COPY src src
# The times of the files are those of the commit, older than the empty ones that were built above.
RUN touch src/main.rs src/lib.rs && ./target.sh build "$TARGETARCH" && ./target.sh root "$TARGETARCH" /root-of-image

FROM scratch
COPY --from=build /root-of-image/ /
USER 65532:65532
WORKDIR /data
# Both listeners take connections from outside of the container; the ports that are published decide who reaches them.
# Without auth.mode or auth.allow_anonymous the daemon does not start: it says so and exits with 2.
ENV JOBCAST_HTTP__LISTEN=0.0.0.0:8080 \
    JOBCAST_ADMIN__LISTEN=0.0.0.0:9464 \
    JOBCAST_SOURCE__SQLITE__PATH=/data/jobcast.db \
    JOBCAST_LOG__FORMAT=json
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["/jobcast", "healthcheck"]
ENTRYPOINT ["/jobcast"]
