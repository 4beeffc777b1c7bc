#!/bin/sh
# Runs once, when the image makes a new data directory, as the server's user and against the temporary server that listens on the
# socket only. Creates the cluster's identity in every configured repository, so that the first archived segment finds its folder.
set -eu
exec pitr --config /etc/pitr/pitr.toml init
