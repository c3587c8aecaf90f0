#!/usr/bin/env bash
# build.sh NAME: the base image of images/NAME as an OCI image layout, build/images/NAME.
# SUITE=trixie takes another Debian, and so another Python; OUT= writes it somewhere else.
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
name=$1
suite=${SUITE:-bookworm}
out=${OUT:-$(dirname -- "$here")/build/images/$name}

for program in mmdebstrap umoci; do
    command -v "$program" > /dev/null || {
        echo "images: $program is not installed: run 'make setup-system' as root" >&2
        exit 1
    }
done
[ -f "$here/$name/image.sh" ] || {
    echo "images: there is no recipe images/$name/image.sh" >&2
    exit 1
}

umask 022
mkdir -p -- "$(dirname -- "$out")"
work=$(mktemp -d "$(dirname -- "$out")/.$name-XXXXXX")
trap 'rm -rf -- "$work"' EXIT
# The same packages give the same bytes: no time, no user and no order of this machine is in them.
export SOURCE_DATE_EPOCH=0 LC_ALL=C TZ=UTC
epoch=1970-01-01T00:00:00Z
layout=$work/layout

new_image() { # new_image: an empty image with the tag NAME
    umoci init --layout "$layout"
    umoci new --image "$layout:$name"
}

add_layer() { # add_layer FILE.tar COMMENT
    umoci raw add-layer --image "$layout:$name" --history.created "$epoch" \
        --history.created_by "clustrix-containers images/$name" --history.comment "$2" "$1"
}

configure() { # configure OPTION…: of `umoci config`
    umoci config --image "$layout:$name" --no-history --created "$epoch" "$@"
}

debian() { # debian OUT.tar HOOK PACKAGE…: these packages unpacked, none of their scripts run
    local tar=$1 hook=$2 mirror
    shift 2
    mirror=$("$here/../scripts/debian-mirror.sh")
    mmdebstrap --quiet --variant=extract --include="$(IFS=,; echo "$*")" \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' \
        --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr --extract-hook="$hook" \
        "$suite" "$tar" \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
        > "$work/log" 2>&1 || { cat -- "$work/log" >&2; return 1; }
}

# shellcheck source=/dev/null
. "$here/$name/image.sh"

umoci gc --layout "$layout"
rm -rf -- "$out"
mv -- "$layout" "$out"
digest=$(sed -n 's/.*"digest":"\([^"]*\)".*/\1/p' "$out/index.json")
echo "$out: $(du -sh -- "$out" | cut -f 1), $digest"
