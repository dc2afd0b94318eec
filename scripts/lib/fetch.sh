# Sourced by the fetch scripts: finds the command. $DATAFETCH, where set, is the one to use.
# shellcheck shell=bash

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
datafetch=${DATAFETCH:-$root/.venv/bin/datafetch}

# usage TEXT: say how the script is called, and leave.
usage() {
    echo "usage: $(basename "$0") $*" >&2
    exit 2
}

if [[ ! -x $datafetch ]]; then
    echo "$(basename "$0"): there is no $datafetch; run scripts/quickstart first, or set DATAFETCH" >&2
    exit 2
fi
