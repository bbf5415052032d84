#!/usr/bin/env bash
# Runs a command nearly as a container runtime would: `container.sh ROOT FOLDERS COMMAND…`, as root, under
# `unshare --mount --pid --fork --ipc --uts`.
#
# The command is process 1 of its namespace and user 10001, without capabilities and with no_new_privs. It sees a
# read-only file system with this host's /usr and the FOLDERS (a:b:c), and writable ones that are empty: /tmp, /models,
# and 64 MiB of /dev/shm, Docker's default. ROOT is an empty folder. The network is the host's own.
set -eu
root=$1
IFS=: read -ra folders <<<"/usr:/etc:$2"
shift 2

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir "$root"/{proc,dev,tmp,models}
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=700,uid=10001,gid=10001 tmpfs "$root/models"
for folder in "${folders[@]}"; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
done
for link in bin sbin lib lib64; do
    if [ -L "/$link" ]; then ln -s "$(readlink "/$link")" "$root/$link"; fi
done
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/dev/shm"
mount -o remount,ro "$root"
exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all env --chdir=/models "$@"
