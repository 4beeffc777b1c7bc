#!/bin/sh
# Puts the store's credentials where archive_command can read them: a file of the server's user, mode 0600. The environment would
# do for the server, but not for recovery, which pitr tries in an empty environment before it lets PostgreSQL start.
set -eu
if [ "$(id -u)" = 0 ] && [ -n "${PITR_S3_SECRET:-}" ]; then
  file=/etc/pitr/s3-credentials
  install -o postgres -g postgres -m 0600 /dev/null "$file"
  printf 'access_key_id = %s\nsecret_access_key = %s\n' "${PITR_S3_KEY:-pitr}" "$PITR_S3_SECRET" > "$file"
fi
exec docker-entrypoint.sh "$@"
