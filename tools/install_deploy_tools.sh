#!/usr/bin/env bash
# Makes sure that what the tests of deploy/ run is there, from the system's packages where it is missing.
set -eu

missing() {
    for program in systemd-analyze tini setpriv unshare; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

if [ -n "$(missing)" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo 'Installing systemd, tini and util-linux with apt-get …'
    apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd tini util-linux >/dev/null || true
fi
if [ -n "$(missing)" ]; then
    echo "error: the tests of deploy/ need these, and cannot install them here: $(missing | tr '\n' ' ')" >&2
    echo 'Install them (on Debian: apt-get install systemd tini util-linux) and run this again.' >&2
    exit 1
fi
