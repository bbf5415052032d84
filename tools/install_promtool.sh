#!/usr/bin/env bash
# Makes sure that promtool is there, which checks metrics, alert rules and Prometheus' configuration. Where it is
# missing, it is taken out of Debian's package into the folder $1 (such as .venv/bin): installing the package would
# start a server.
set -eu

target=${1:?usage: install_promtool.sh FOLDER}
if command -v promtool >/dev/null || [ -x "$target/promtool" ]; then
    exit 0
fi
if command -v apt-get >/dev/null; then
    echo "Taking promtool out of Debian's package prometheus …"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq || true
    fi
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download prometheus && dpkg-deb --extract prometheus_*.deb .) || true
    if [ -x "$work/usr/bin/promtool" ]; then
        install "$work/usr/bin/promtool" "$target/promtool"
        exit 0
    fi
fi
echo 'error: the tests of metrics need promtool, and cannot fetch it here.' >&2
echo 'Install it (on Debian: apt-get install prometheus) and run this again.' >&2
exit 1
