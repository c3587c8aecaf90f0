#!/usr/bin/env bash
# finish.sh ROOT: what the packages' own scripts would do, as far as a container needs it.
set -euo pipefail
root=$1

cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
[ -e "$root/bin/sh" ] || ln -s dash "$root/bin/sh"
mkdir -p "$root/etc/ssl/certs"
find "$root/usr/share/ca-certificates/mozilla" -name '*.crt' -print0 | LC_ALL=C sort -z |
    xargs -0 cat > "$root/etc/ssl/certs/ca-certificates.crt"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
ldconfig -r "$root"
rm -f "$root/var/cache/ldconfig/aux-cache"

# A read-only root without bytecode costs every process the compilation of what it imports.
# One process and no hash seed: the bytes are the same each time.
PYTHONHASHSEED=0 chroot "$root" /usr/bin/python3 -m compileall -q -j 1 \
    --invalidation-mode unchecked-hash /usr/lib/python3*

rm -rf "$root"/usr/share/{doc,info,lintian,locale,man} "$root"/var/cache/* "$root"/var/log/* \
    "$root"/var/lib/apt/* "$root"/var/lib/dpkg/*-old "$root/etc/hostname" "$root"/tmp/*
# Runtimes bind theirs over these.
: > "$root/etc/hosts"
: > "$root/etc/resolv.conf"
