#!/bin/sh
# debian-mirror.sh: the address of the Debian mirror that this machine's own apt uses.
set -eu
# shellcheck disable=SC2016 # these are apt's variables
mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
    sed -n 's/^Debian|Debian|main|//p' | sed 's|/*$||' | sort -u | head -n 1)
[ -n "$mirror" ] || {
    echo "debian-mirror: this machine's apt has no Debian mirror (or 'apt-get update' was never run)" >&2
    exit 1
}
echo "$mirror"
