#!/bin/sh
# boot.sh DIRECTORY ROOT NAME [PATH INSIDE]...: the first process of a machine, in namespaces
# of its own. Makes ROOT, with what DIRECTORY/upper has changed, the root file system, PATH
# seen at INSIDE, and becomes init.
set -eu
cd -- "$1"
root=$2 name=$3
shift 3

hostname -- "$name"
# Overlay's options know no quoting: relative names have nothing to quote.
mkdir -p lower upper work new
mount --bind -- "$root" lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work new
hosts=$PWD/hosts
cd new

mkdir -p proc sys dev run tmp
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mkdir -m 1777 run/lock
mount -t tmpfs -o mode=755 tmpfs dev
while read -r node minor; do
    mknod -m 666 "dev/$node" c "${minor%:*}" "${minor#*:}"
done << NODES
null 1:3
zero 1:5
full 1:7
random 1:8
urandom 1:9
tty 5:0
fuse 10:229
NODES
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
ln -s pts/ptmx dev/ptmx
mkdir dev/pts
mkdir -m 1777 dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm

# Each hierarchy begins, for the machine, at the machine's own cgroup.
if [ "$(wc -l < /proc/self/cgroup)" = 1 ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        case $controllers in
        '')
            mkdir sys/fs/cgroup/unified
            mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
            ;;
        name=*)
            mkdir "sys/fs/cgroup/${controllers#name=}"
            mount -t cgroup -o "none,$controllers" cgroup "sys/fs/cgroup/${controllers#name=}"
            ;;
        *)
            mkdir "sys/fs/cgroup/$controllers"
            mount -t cgroup -o "$controllers" cgroup "sys/fs/cgroup/$controllers"
            ;;
        esac
    done < /proc/self/cgroup
fi

: > etc/resolv.conf
: > etc/hosts
mount --bind -- "$hosts" etc/hosts
while [ "$#" -gt 0 ]; do
    if [ -d "$1" ]; then
        mkdir -p -- ".$2"
    else
        mkdir -p -- ".${2%/*}"
        [ -e ".$2" ] || : > ".$2"
    fi
    mount --rbind -- "$1" ".$2"
    shift 2
done

# It reaps what daemons leave; the host's own, since a root for tests need not have one.
mkdir -p .machine
cp -- "$(command -v busybox)" .machine/busybox
ln -sf busybox .machine/init
printf '::sysinit:/.machine/busybox true\n' > etc/inittab
pivot_root . .
# The machine's own umount may be missing.
/.machine/busybox umount -l .
exec /.machine/init < /dev/null
