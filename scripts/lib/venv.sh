# Sourced by the scripts: a virtual environment in the project root that is up to date.
# Sets root and venv. $PYTHON, if set, is the interpreter for a new environment.
# shellcheck shell=bash

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
venv=$root/.venv

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# find_python: print an interpreter that can make a venv.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3) python
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        # Run it, and don't only look it up: version managers leave names on PATH that don't work.
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        # Debian packages ensurepip separately; without it, venv makes an environment without pip.
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
        echo "$python"
        return
    done
    die "needs Python 3.11 or later, found none as: ${candidates[*]} (set PYTHON to point at one)"
}

# ensure_venv [EXTRAS [OPTIONS OF PIP]]: make the venv if it is missing or broken, and install the package, editable, with
# EXTRAS such as "[test]" at the versions of constraints.txt. Does not run pip if nothing has changed since the last time.
# scripts/check and scripts/test-simd pass --no-compile: Python compiles a module when it is first imported, and most
# modules of a package never are.
ensure_venv() {
    local extras=${1:-} constraints=$root/constraints.txt stamp=$venv/installed python wanted lock
    wanted="$(cat "$root/pyproject.toml" "$constraints" | sha256sum) $extras"
    ! { _venv_works && _is_installed "$wanted"; } || return 0
    exec {lock}>"$venv.lock" # two scripts may be started at once
    flock "$lock"
    if ! _venv_works || ! "$venv/bin/python" -c 'import pip._internal.cli.main' 2>/dev/null; then
        [[ ! -L $venv ]] || die "$venv is a link, to an environment of another folder; remove the link"
        python=$(find_python)
        echo "Making ${venv##*/} with $python" >&2
        "$python" -m venv --clear "$venv"
        # The pip of Python 3.11 takes a minute of CPU time to choose among the wheels, the current one a third of that.
        # Where it can't be had, installing only takes longer.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip 2>/dev/null || true
    fi
    if ! _is_installed "$wanted"; then
        rm -f "$stamp" # so that an installation that is killed is repeated
        if compgen -G "$venv/lib/python3*/site-packages/pillow-*.post*.dist-info" >/dev/null; then
            # Keep what scripts/install-pillow-simd has installed in place of Pillow.
            constraints=$venv/constraints-without-pillow.txt
            grep -v '^pillow==' "$root/constraints.txt" >"$constraints"
        fi
        echo "Installing into ${venv##*/} (takes a minute the first time)" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 "${@:2}" \
            --constraint "$constraints" --editable "$root$extras"
        echo "$wanted" >"$stamp.begun"
        mv "$stamp.begun" "$stamp"
    fi
    exec {lock}>&-
}

# _is_installed WANTED: whether that is what was installed last, or a part of it: an install with more extras also serves
# those who need none.
_is_installed() {
    [[ -f $venv/installed && $(<"$venv/installed") == "$1"* ]]
}

# Whether the venv is complete, was made in this folder (it can't be moved), and its Python still exists.
_venv_works() {
    [[ $(VIRTUAL_ENV='' && source "$venv/bin/activate" 2>/dev/null && echo "$VIRTUAL_ENV") == "$venv" ]] &&
        "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
