# shellcheck shell=bash
# Debian's own Python and the libraries that PEP 600 lets a wheel expect.
# shellcheck disable=SC2154 # sourced by build.sh

debian "$work/root.tar" "$here/slim/finish.sh" \
    base-files base-passwd bash ca-certificates coreutils dash debianutils findutils grep gzip \
    libc-bin libgcc-s1 libgomp1 libstdc++6 python3 python3-venv sed tar tzdata
python=$(tar -tf "$work/root.tar" | sed -n 's|^\(\./\)\{0,1\}usr/bin/python\(3\.[0-9]*\)$|\2|p')
glibc=$(tar -xOf "$work/root.tar" --wildcards '*/libc.so.6' |
    grep -a -o 'release version [0-9]*\.[0-9]*' | sed -n '1s|.* ||p')

new_image
add_layer "$work/root.tar" "Debian $suite, Python $python"
configure \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --config.env LANG=C.UTF-8 \
    --config.cmd "/usr/bin/python3" \
    --config.workingdir / \
    --config.label "io.clustrix-containers.python=$python" \
    --config.label "io.clustrix-containers.interpreter=/usr/bin/python$python" \
    --config.label "io.clustrix-containers.glibc=$glibc"
