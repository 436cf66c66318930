# shellcheck shell=sh
# Shared by the scripts. Sourced from the repository's root.

say() {
    if [ -t 2 ]; then printf '\033[1m==> %s\033[0m\n' "$*" >&2; else printf '==> %s\n' "$*" >&2; fi
}

fail() {
    echo "$*" >&2
    exit 2
}

# The interpreter to make .venv with: 3.11 is what embedded/requirements.txt is locked for.
find_python() {
    for python in ${PYTHON:-python3.11 python3}; do
        if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11"
}

# Of the thousands of installed modules, a few hundred are imported, and compiled only then; so that must be allowed.
unset PYTHONDONTWRITEBYTECODE

# pip in .venv. Its output goes to .venv/install.log: the last line is shown now and then, and all of it if pip fails.
pip() {
    .venv/bin/python -m pip --disable-pip-version-check "$@" --no-compile --progress-bar off >.venv/install.log 2>&1 &
    pip_pid=$!
    trap 'kill "$pip_pid"; exit 130' INT TERM # a process in the background does not get the terminal's ^C
    seconds=0
    while kill -0 "$pip_pid" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 15)) -ne 0 ] || printf '    %3s s  %s\n' "$seconds" "$(grep -v WARNING .venv/install.log | tail -n 1 | cut -c 1-90)" >&2
    done
    trap - INT TERM
    if ! wait "$pip_pid"; then
        cat .venv/install.log >&2
        fail "pip $1 failed"
    fi
}

# stale NAME FILE…: whether the step NAME has not been done yet with these contents of FILE….
stale() {
    name=$1
    shift
    [ "$(cat ".venv/.done-$name" 2>/dev/null)" != "$(cat "$@" | cksum)" ]
}

# mark NAME FILE…: the step NAME has been done with these contents.
mark() {
    name=$1
    shift
    cat "$@" | cksum >".venv/.done-$name"
}
