#!/usr/bin/env bash
# Makes sure that node (18 or newer) and npm are there, from the system's packages where they are missing.
set -eu

node_works() {
    command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)' 2>/dev/null
}

if ! node_works && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo 'Installing nodejs and npm with apt-get …'
    apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null || true
fi
if ! node_works; then
    echo 'error: the tests of the Node client need node 18 or newer and npm, and cannot install them here.' >&2
    echo 'Install them (on Debian: apt-get install nodejs npm) and run this again.' >&2
    exit 1
fi
