#!/bin/sh
# Build the examples' images, run each as a worker against the local RunPod, post its jobs and check the answers.
#   examples/build_and_test.sh [NAME…]
# DOCKER names the command (docker), PYTHON one that has the dependencies (.venv/bin/python), BUILD=no takes images that
# are there. The containers use the host's network, where the local RunPod listens on loopback.
set -eu
cd "$(dirname "$0")/.."
docker=${DOCKER:-docker}
python=${PYTHON:-.venv/bin/python}

if ! $docker version >/dev/null 2>&1; then
    echo "examples/build_and_test.sh: there is no Docker daemon that '$docker version' reaches" >&2
    exit 2
fi

[ $# -gt 0 ] || set -- hello stream embed
for name in "$@"; do
    image=example-$name
    if [ "${BUILD:-yes}" != no ]; then
        DOCKER_BUILDKIT=1 $docker build --platform linux/amd64 --tag "$image" --file "examples/$name/Dockerfile" .
    fi
    variables=$($python -c 'from local_runpod import worker_environment as e; print(*[f"--env {n}" for n in e("")])')
    # shellcheck disable=SC2086 # the command and the flags are words
    $python -m examples.check "$name" $docker run --rm --init --network host $variables \
        --env RUNPOD_SKIP_AUTO_SYSTEM_CHECKS --env RUNPOD_SKIP_GPU_CHECK "$image"
done
