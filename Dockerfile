# PostgreSQL with pitr beside it. The binary is static, so the same file runs in any image; this one builds it and puts it where
# archive_command and restore_command name it.
#
#   docker build --build-arg PG_MAJOR=17 -t postgres-pitr:17 .
ARG PG_MAJOR=17

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY src src
RUN cargo build --release --locked \
 && cp target/x86_64-unknown-linux-gnu/release/pitr /pitr

FROM postgres:${PG_MAJOR}-bookworm
COPY --from=build /pitr /usr/local/bin/pitr
COPY docker/init-pitr.sh /docker-entrypoint-initdb.d/90-pitr.sh
COPY docker/entrypoint.sh /usr/local/bin/pitr-entrypoint.sh
COPY docker/pitr.toml /etc/pitr/pitr.toml
ENTRYPOINT ["pitr-entrypoint.sh"]
CMD ["postgres"]
