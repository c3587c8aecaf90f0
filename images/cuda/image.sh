# shellcheck shell=bash
# slim, and what NVIDIA's container runtime looks for in an image's environment. The driver's
# libraries come from the host at run time, CUDA's own from PyPI with the packages that use them.
# shellcheck disable=SC2154 # sourced by build.sh

slim=$(dirname -- "$out")/slim
[ -f "$slim/index.json" ] || SUITE="$suite" OUT="$slim" "$here/build.sh" slim
cp -r -- "$slim" "$layout"
umoci tag --image "$layout:slim" "$name"
umoci rm --image "$layout:slim"
configure \
    --config.env NVIDIA_VISIBLE_DEVICES=all \
    --config.env NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    --config.env LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64
