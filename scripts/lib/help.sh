# Sourced first by every script: with --help, the script prints its opening comment and exits.
# shellcheck shell=bash

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
    exit
fi
