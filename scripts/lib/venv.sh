# Sourced by the scripts: a virtual environment in the project root that is up to date.
# Sets root and venv. $PYTHON, where set, is the interpreter that a new environment is made with.
# shellcheck shell=bash

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
venv=$root/.venv

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# find_python: print an interpreter that a venv can be made with.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3) python
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        # Run, not only looked up: a version manager leaves names on PATH that lead to nothing.
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        # Debian splits ensurepip off; venv without it leaves an environment that has no pip.
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
        echo "$python"
        return
    done
    die "needs Python 3.11 or later, found none as: ${candidates[*]} (set PYTHON to point at one)"
}

# ensure_venv [EXTRAS]: make the venv where it is missing or broken, and install the package, editable, with EXTRAS
# such as "[test]" at the versions of constraints.txt. Without pip when nothing changed since the last time.
ensure_venv() {
    local extras=${1:-} constraints=$root/constraints.txt stamp=$venv/installed python wanted
    if ! _venv_works; then
        python=$(find_python)
        echo "Making ${venv##*/} with $python" >&2
        "$python" -m venv --clear "$venv"
    fi
    wanted="$(cat "$root/pyproject.toml" "$constraints" | sha256sum) $extras"
    # A prefix will do: an install with more extras serves those who want none.
    [[ ! -f $stamp || $(<"$stamp") != "$wanted"* ]] || return 0
    if compgen -G "$venv/lib/python3*/site-packages/pillow-*.post*.dist-info" >/dev/null; then
        # scripts/install-pillow-simd was here: what it put in place of Pillow stays.
        constraints=$venv/constraints-without-pillow.txt
        grep -v '^pillow==' "$root/constraints.txt" >"$constraints"
    fi
    echo "Installing into ${venv##*/} (the first time that takes a minute)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 \
        --constraint "$constraints" --editable "$root$extras"
    echo "$wanted" >"$stamp"
}

# Whether the venv was made whole, for this place (it does not survive a move), by a Python that is still there.
_venv_works() {
    grep -qsF "$venv" "$venv/bin/activate" &&
        "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
