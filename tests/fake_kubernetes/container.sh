#!/bin/sh
# container.sh SCRATCH ROOT NAME ADDRESS WRITABLE UID GID DIRECTORY [SOURCE TARGET ro|rw]... --
#              NUMBER [NAME=VALUE]... COMMAND [ARGUMENT]...
# The first process of a container, in namespaces of its own: the root file system is ROOT with
# a layer in memory over it; each SOURCE is seen at TARGET. ADDRESS: of its own network, or none.
# NUMBER: how many NAME=VALUE follow. Everything of the host's is out of sight at the end.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
scratch=$1 root=$2 name=$3 address=$4 writable=$5 uid=$6 gid=$7 directory=$8
shift 8

hostname -- "$name"
if [ -n "$address" ]; then
    busybox ip link set lo up
    busybox ip address add "$address/32" dev lo
fi
mount -t tmpfs -o mode=755 tmpfs "$scratch"
cd -- "$scratch"
# Overlay's options know no quoting: relative names have nothing to quote.
mkdir lower upper work new
mount --bind -- "$root" lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work new
mkdir -p new/proc new/dev
mount -t proc proc new/proc
mount -t tmpfs -o mode=755 tmpfs new/dev
for device in null zero full random urandom; do
    : > "new/dev/$device"
    mount --bind "/dev/$device" "new/dev/$device"
done
ln -s /proc/self/fd new/dev/fd
ln -s fd/0 new/dev/stdin
ln -s fd/1 new/dev/stdout
ln -s fd/2 new/dev/stderr
mkdir -m 1777 new/dev/shm
mkdir -p "new$directory"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p -- "new$2"
    else
        mkdir -p -- "new${2%/*}"
        [ -e "new$2" ] || : > "new$2"
    fi
    mount --bind -- "$1" "new$2"
    [ "$3" = rw ] || mount -o remount,bind,ro -- "new$2"
    shift 3
done
[ "$writable" = yes ] || mount -o remount,bind,ro new
shift
number=$1
shift
# The environment goes first, then the program that enters, then what it runs.
for argument; do
    shift
    if [ "$number" = 0 ]; then
        set -- "$@" /usr/bin/unshare --root="$scratch/new" --wd="$directory"
        # In a user namespace there is nobody else to be.
        [ -z "$uid" ] || set -- "$@" --setgid="$gid" --setuid="$uid"
        set -- "$@" --
    fi
    number=$((number - 1))
    set -- "$@" "$argument"
done
# The keeper has it started in the background, where a shell has these two ignored.
exec setpriv --no-new-privs env -i --default-signal=INT,QUIT "$@"
