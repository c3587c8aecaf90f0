#!/bin/sh
# debian-mirror.sh: the address of the Debian mirror that this machine's own apt uses.
set -eu
codename=$(sed -n "s/^VERSION_CODENAME=//p" /etc/os-release)
# Nothing is fetched, and no package lists need be here. Others publish for the same release
# under longer paths, so the shortest one is Debian's.
mirror=$(apt-get update --print-uris |
    sed -n "s|^'\(.*\)/dists/$codename/\(In\)\{0,1\}Release' .*|\1|p" |
    awk '{ print split($0, parts, "/"), $0 }' | LC_ALL=C sort -n -u | sed -n '1s/^[^ ]* //p')
[ -n "$mirror" ] || {
    echo "debian-mirror: no mirror of Debian $codename is among this machine's apt sources" >&2
    exit 1
}
echo "$mirror"
