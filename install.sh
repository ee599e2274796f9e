#!/usr/bin/env bash
# Sets ktops up in .venv beside this script: Python packages, native kernels, nothing else.
# Safe to run again; touches no file outside the checkout but the build cache.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly venv="$here/.venv"

usage() {
  cat <<'EOF'
Usage: ./install.sh [--dev] [--system] [--find-links DIR]

  --dev             also install what the tests and checks need
  --system          install missing system packages with apt-get (asks sudo unless root)
  --find-links DIR  look for Python packages in DIR first (PIP_INDEX_URL and pip's other
                    variables are read as usual)

Environment: PYTHON names the interpreter (3.11 to 3.13). USE_NUMA=1 or 0 builds the kernels with
or without NUMA placement; unset, the machine decides.
EOF
}

fail() { # message, then the command that helps
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '  Fix: %s\n' "$2" >&2
  exit 1
}

extras=""
system=0
while [ $# -gt 0 ]; do
  case "$1" in
    --dev) extras="[dev]" ;;
    --system) system=1 ;;
    --find-links)
      [ $# -ge 2 ] || fail "--find-links needs a folder" "./install.sh --find-links DIR"
      [ -d "$2" ] || fail "--find-links: $2 is not a folder"
      PIP_FIND_LINKS="$(cd "$2" && pwd)${PIP_FIND_LINKS:+ $PIP_FIND_LINKS}"
      export PIP_FIND_LINKS # through the environment, so that isolated builds see it too
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "ktops runs on Linux on x86-64; this is $(uname -sm)"
case "${USE_NUMA:-unset}" in
  1 | 0 | unset) ;;
  *) fail "USE_NUMA=$USE_NUMA: it is 1, 0 or unset" "USE_NUMA=1 ./install.sh" ;;
esac

python_fits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    python_fits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python from 3.11 to 3.13"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11; do
    if python_fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

gxx_fits() { # g++, or one that carries its version in its name
  local candidate version
  for candidate in g++ g++-{11..16}; do
    version=$("$candidate" -dumpversion 2>/dev/null) || continue
    [ "${version%%.*}" -lt 11 ] || return 0
  done
  return 1
}

python=$(find_python)
missing=()
[ -n "$python" ] || missing+=(python3 python3-venv)
# Debian splits venv's pip off into a package of its own.
if [ -n "$python" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  missing+=("python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv")
fi
gxx_fits || missing+=(g++)

if [ ${#missing[@]} -gt 0 ]; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo "
  if [ $system = 1 ]; then
    ${sudo}apt-get update
    ${sudo}apt-get install -y "${missing[@]}"
    python=$(find_python)
    [ -n "$python" ] || fail "this release of the system has no Python from 3.11 to 3.13" \
      "install one and run: PYTHON=/path/to/python3.12 ./install.sh"
    gxx_fits || fail "g++ is older than 11" "${sudo}apt-get install -y g++-12 && ./install.sh"
  else
    fail "missing: ${missing[*]} (Python 3.11 to 3.13 with venv, g++ 11 or newer)" \
      "${sudo}apt-get update && ${sudo}apt-get install -y ${missing[*]}     (or: ./install.sh --system)"
  fi
fi

# A half-made or moved environment, or one of another Python, is made anew.
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null || ! python_fits "$venv/bin/python" ||
  ! grep -qF "$venv/bin/python" "$venv/bin/pip"; then
  echo "creating $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi

echo "installing ktops and its packages (the first time this can take some minutes)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$here/constraints.txt" --editable "$here$extras"

"$venv/bin/ktops" build

cat <<EOF

ktops is ready. Next:

  $venv/bin/ktops serve      serve the embedded model and answer on http://127.0.0.1:10002
  $venv/bin/ktops chat       talk to it here
  $venv/bin/ktops doctor     what this machine can run, and what to change
EOF
[ -z "$extras" ] || echo "  $venv/bin/pytest           the tests"
