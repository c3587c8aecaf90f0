#!/usr/bin/env bash
# setup-system.sh "CLUSTERS" "EXCLUDE": the Debian packages of tests/clusters/packages.txt that
# are missing here. Without root or Debian it says what is missing, and how to get it.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
clusters=$1 exclude=$2

wanted() { # the packages for the chosen clusters, less the excluded ones
    awk -v clusters=" ${clusters//,/ } " -v exclude=" ${exclude//,/ } " '
        /^[[:space:]]*(#|$)/ { next }
        {
            chosen = $2 == "all" || (clusters ~ /^ *$/ || index(clusters, " " $2 " "))
            if (chosen && !index(exclude, " " $2 " ")) print $1
        }' tests/clusters/packages.txt | LC_ALL=C sort -u
}

installed() {
    dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' |
        LC_ALL=C sort -u
}

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
    mapfile -t all < <(wanted)
    echo "setup-system: this is not Debian or a relative of it: install yourself what these" \
        "packages hold: ${all[*]}, or leave parts out by name (EXCLUDE=\"docker apptainer\")" >&2
    exit 0
fi
mapfile -t missing < <(LC_ALL=C comm -23 <(wanted) <(installed))
[ "${#missing[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "setup-system: missing, and only root can install them: ${missing[*]}; run" \
        "'sudo make setup-system', or leave parts out by name (EXCLUDE=\"docker apptainer\")" >&2
    exit 0
fi
echo "setup-system: installing ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f -- "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# Two runs at once wait for each other; a mirror that stumbles is asked again.
options=(-q -y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
if ! { apt-get -q -o Acquire::Retries=3 update && apt-get install "${options[@]}" "${missing[@]}"; } \
    > "$log" 2>&1 < /dev/null; then
    cat -- "$log" >&2
    echo "setup-system: apt-get could not install ${missing[*]}" >&2
    exit 1
fi
