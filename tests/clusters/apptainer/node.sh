#!/usr/bin/env bash
# node.sh OUT: a root file system of Debian sid with Apptainer in OUT/root, and in OUT/bin an
# `apptainer` that runs it on this machine's files. Stable Debian has no Apptainer, and the
# one in sid wants a newer libc than stable has.
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
out=$1
umask 022
export TMPDIR=/tmp

mirror=$("$here/../../../scripts/debian-mirror.sh")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p -- "$out/bin"
# A mirror that is frozen at a date has a Release file of sid that is past its own.
mmdebstrap --variant=essential \
    --include=apptainer,squashfuse,fuse-overlayfs,squashfs-tools,procps,tzdata \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Retries "3"' \
    sid "$out/root" "deb [signed-by=$keyring] $mirror sid main"

# Machines for tests often keep root without CAP_SYS_RESOURCE, and have no systemd.
sed -i -e 's/^root default capabilities = .*/root default capabilities = file/' \
    -e 's/^systemd cgroups = .*/systemd cgroups = no/' "$out/root/etc/apptainer/apptainer.conf"
# What the machine's own files are bound onto.
touch "$out/root/etc/hosts" "$out/root/etc/resolv.conf"
install -m 755 -- "$here/enter.sh" "$out/bin/apptainer"
