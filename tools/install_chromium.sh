#!/usr/bin/env bash
# Makes sure that chromium is there for the tests of the live page, from the system's packages where it is missing.
set -eu

chromium_works() {
    command -v chromium >/dev/null && chromium --version >/dev/null 2>&1
}

if ! chromium_works && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo 'Installing chromium with apt-get …'
    # Fonts: what system-ui becomes, so that screenshots look as they do on a desktop.
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-inter fonts-dejavu-core \
        >/dev/null || true
fi
if ! chromium_works; then
    echo 'error: the tests of the live page need chromium, and cannot install it here.' >&2
    echo 'Install it (on Debian: apt-get install chromium) and run this again.' >&2
    exit 1
fi
