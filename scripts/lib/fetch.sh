# Sourced by the fetch scripts: finds the command; $DATAFETCH overrides it.
# shellcheck shell=bash

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
datafetch=${DATAFETCH:-$root/.venv/bin/datafetch}

# usage TEXT: print how to call the script, and exit.
usage() {
    echo "usage: $(basename "$0") $*" >&2
    exit 2
}

if [[ ! -x $datafetch ]]; then
    echo "$(basename "$0"): there is no $datafetch; run scripts/quickstart first, or set DATAFETCH" >&2
    exit 2
fi
