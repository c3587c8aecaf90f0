#!/bin/sh
# Stands as `apptainer` in a folder beside `root`: runs the Apptainer in there as if it were
# installed on this machine. All folders of the machine but the system's own are seen at their
# places, and no process stands in between: signals, exit codes and limits are Apptainer's.
set -eu

if [ "${1-}" != --inside-a-mount-namespace ]; then
    self=$(readlink -f -- "$0")
    root=$(dirname -- "$(dirname -- "$self")")/root
    set -- "$self" --inside-a-mount-namespace "$root" "$PWD" "$@"
    if [ "$(id -u)" = 0 ]; then
        # Machines for tests often keep this from root; Apptainer would ask for it.
        export APPTAINER_DROP_CAPS="${APPTAINER_DROP_CAPS-CAP_SYS_RESOURCE}"
        exec unshare --mount --propagation private -- "$@"
    fi
    exec unshare --user --map-current-user --keep-caps --mount --propagation private -- "$@"
fi

root=$2 directory=$3
shift 3
# Apptainer finds its files by the path of its executable, which the kernel tells from the
# mount that it lies on: so the root is one mount, and the root of the namespace.
mount --rbind "$root" "$root"
for folder in /*; do
    case $folder in
    /usr | /bin | /sbin | /lib* | /etc | /var | /boot) continue ;;
    esac
    [ -d "$folder" ] || continue
    [ -d "$root$folder" ] || mkdir -- "$root$folder" 2> /dev/null || continue
    mount --rbind "$folder" "$root$folder"
done
mount --rbind /var/tmp "$root/var/tmp"
for file in passwd group hosts resolv.conf; do
    [ ! -e "/etc/$file" ] || mount --bind "/etc/$file" "$root/etc/$file"
done
cd -- "$root"
pivot_root . .
umount --lazy .
cd -- "$directory" 2> /dev/null || cd /
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
if [ "$(id -u)" = 0 ]; then
    exec /usr/bin/apptainer "$@"
fi
# The capabilities were for the mounts only.
exec setpriv --inh-caps=-all --ambient-caps=-all -- /usr/bin/apptainer "$@"
