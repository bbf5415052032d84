#!/usr/bin/env bash
# Makes sure that promtool is there, which checks metrics, alert rules and Prometheus' configuration, and Prometheus
# itself. Where they are missing, they are taken out of Debian's package into the folder $1 (such as .venv/bin):
# installing the package would start a server.
set -eu

target=${1:?usage: install_promtool.sh FOLDER}
are_there() {
    PATH="$target:$PATH"
    command -v promtool >/dev/null && command -v prometheus >/dev/null
}

if are_there; then
    exit 0
fi
if command -v apt-get >/dev/null; then
    echo "Taking promtool and prometheus out of Debian's package prometheus …"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq || true
    fi
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download prometheus && dpkg-deb --extract prometheus_*.deb .) || true
    install "$work/usr/bin/promtool" "$work/usr/bin/prometheus" "$target/" || true
fi
if are_there; then
    exit 0
fi
echo 'error: the tests of metrics need promtool, and cannot fetch it here.' >&2
echo 'Install it (on Debian: apt-get install prometheus) and run this again.' >&2
exit 1
