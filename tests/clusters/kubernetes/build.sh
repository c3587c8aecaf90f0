#!/usr/bin/env bash
# build.sh ROOT OUT: builds Kubernetes' programs from Debian stable's own source package, which
# carries all that it needs, with the compiler in the root file system ROOT; they come to lie in
# OUT. Six minutes on 2 cores, and 3 GB of disk meanwhile.
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
root=$1 out=$2
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)

work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
mirror=$("$here/../../../scripts/debian-mirror.sh")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p -- "$work"/{lists/partial,source,build,bin}
echo "deb-src [signed-by=$keyring] $mirror bookworm main" > "$work/sources.list"
options=(
    -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root -o Acquire::Retries=3
)
apt-get "${options[@]}" -q update
(cd -- "$work/source" && apt-get "${options[@]}" -q source --download-only kubernetes)
version=$(echo "$work"/source/kubernetes_*.orig.tar.gz)
version=${version##*/kubernetes_} version=${version%%+*} version=${version%.orig.tar.gz}
tree=$work/build/go/src/k8s.io/kubernetes
mkdir -p -- "$tree"
tar -xzf "$work"/source/kubernetes_*.orig.tar.gz -C "$tree" --strip-components=1

# In namespaces of its own, so that whatever happens nothing stays mounted.
minor=${version#*.}
minor=${minor%%.*}
mkdir -- "$work"/{new,upper,overlay,lower}
export WORK=$work ROOT=$root
# shellcheck disable=SC2016  # the inner shell expands it
unshare --mount --propagation=private bash -euo pipefail -c '
    cd -- "$WORK"
    mount --bind -- "$ROOT" lower
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=overlay new
    mkdir -p new/build
    mount --bind build new/build
    mount --rbind /dev new/dev
    mount -t proc proc new/proc
    mount -t tmpfs -o mode=1777 tmpfs new/tmp
    exec chroot new "$@"
' bash /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/build \
    CGO_ENABLED=0 GO111MODULE=off GOPATH=/build/go GOCACHE=/build/cache GOFLAGS=-buildvcs=false \
    KUBE_GIT_VERSION="v$version" KUBE_GIT_TREE_STATE=clean KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR="$minor" \
    KUBE_GIT_COMMIT=0000000000000000000000000000000000000000 \
    make -C /build/go/src/k8s.io/kubernetes GOLDFLAGS="-s -w" WHAT="${programs[*]/#/cmd/}"
for program in "${programs[@]}"; do
    install -m 755 -- "$tree/_output/local/bin/linux/$(dpkg --print-architecture)/$program" "$work/bin/"
done
mv -- "$work/bin" "$out"
