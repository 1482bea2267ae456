#!/bin/sh
# Finds a Python that can build the virtual environment, then hands over to deploy/bootstrap.py.
# Plain POSIX sh: it runs under dash, bash 3.2 and zsh's sh alike.
#
#   setup.sh [--dev | --requirements]
#
# PYTHON=/path/to/python3.12 overrides the search.
set -u
cd "$(dirname "$0")/.." || exit 1

# The usual case, in well under a second: everything is installed already.
if [ "${1:-}" != "--requirements" ] && [ -x .venv/bin/python ] &&
    .venv/bin/python deploy/bootstrap.py --check "$@" 2>/dev/null; then
    exit 0
fi

# Every candidate is run: a pyenv shim or a dead link can be on PATH and still start nothing.
PROBE='
import sys
v = sys.version_info
if not (3, 11) <= v[:2] <= (3, 13):
    print("version %d.%d" % v[:2])
else:
    try:
        import ensurepip, venv
        print("ok")
    except ImportError:
        print("venv %d.%d" % v[:2])
'
novenv=
other=
chosen=

consider() {
    [ -z "$chosen" ] && [ -x "$1" ] && [ ! -d "$1" ] || return 0
    answer=$("$1" -I -c "$PROBE" 2>/dev/null </dev/null) || return 0
    case $answer in
        ok) chosen=$1 ;;
        venv*) [ -n "$novenv" ] || novenv="${answer#venv } at $1" ;;
        version*) [ -n "$other" ] || other="${answer#version } at $1" ;;
    esac
}

if [ -n "${PYTHON:-}" ]; then
    given=$(command -v "$PYTHON" 2>/dev/null) || given=$PYTHON
    consider "$given"
else
    oldifs=$IFS
    for name in python3 python3.13 python3.12 python3.11 python; do
        IFS=:
        for folder in $PATH; do
            IFS=$oldifs
            consider "${folder:-.}/$name"
        done
        IFS=$oldifs
    done
    # places that are often missing from PATH; set empty to search PATH only
    places=${STUDIO_PYTHON_PLACES-"${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}/versions/3.1[123]*/bin /opt/homebrew/bin \
        /usr/local/bin /Library/Frameworks/Python.framework/Versions/3.1[123]/bin"}
    for folder in $places; do
        for found in "$folder"/python3.1[123]; do
            consider "$found"
        done
    done
fi

if [ -n "$chosen" ]; then
    exec "$chosen" -I deploy/bootstrap.py "$@"
fi
if [ -n "$novenv" ]; then
    release=${novenv%% *}
    echo "Studio cannot make its virtual environment: Python $novenv lacks the venv module (or ensurepip)." >&2
    echo "On Debian or Ubuntu run: apt install python$release-venv   Elsewhere install Python from python.org. Then run make again." >&2
    exit 1
fi
if [ -n "${PYTHON:-}" ] && [ -z "$other" ]; then
    echo "PYTHON=$PYTHON does not start. Point it to a working Python 3.11, 3.12 or 3.13, or leave it unset." >&2
    exit 1
fi
echo "Studio needs Python 3.11, 3.12 or 3.13, and none was found${other:+ (only Python $other)}." >&2
echo "Install one (apt install python3.11 python3.11-venv, brew install python@3.12, or pyenv install 3.12) and run make again," >&2
echo "or name it: make setup PYTHON=/path/to/python3.12" >&2
exit 1
