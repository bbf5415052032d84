#!/usr/bin/env bash
# Makes gateway/page/vendor again from the packages that npm has: uPlot (MIT), which draws the live page's charts.
#
# The files are in git, so nobody needs this to build or to serve. Run it after changing a version and its hash here.
set -eu
cd "$(dirname "$0")/.."

version=1.6.32
package_sha256=4b8a8191e425658e3ea8c8c1314b0fc679c861ee3a1af2b20c7b16ba50b5133d
target=gateway/page/vendor

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "uplot@$version" >/dev/null)
echo "$package_sha256  $work/uplot-$version.tgz" | sha256sum --check --quiet
tar -xzf "$work/uplot-$version.tgz" -C "$work"

rm -rf "$target"
mkdir -p "$target"
cp "$work/package/dist/uPlot.esm.js" "$target/uPlot.js"
cp "$work/package/dist/uPlot.min.css" "$target/uPlot.css"
cp "$work/package/LICENSE" "$target/LICENSE"

# What tests/page/test_vendor.py compares the files with.
sha256sum --check --quiet <<'SUMS'
8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd  gateway/page/vendor/LICENSE
df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04  gateway/page/vendor/uPlot.css
5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba  gateway/page/vendor/uPlot.js
SUMS
