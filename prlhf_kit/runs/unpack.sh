#!/usr/bin/env bash
# Joins, verifies and installs a bundle on a node without a network:  bash unpack.sh DIR
# PYTHON names the node's Python that has torch (default: python3).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=${1:?"usage: bash unpack.sh DIR, a new folder to install into"}
python=${PYTHON:-python3}
[ ! -e "$to" ] || { echo "$to exists: name a new folder" >&2; exit 2; }
(cd "$here" && sha256sum --quiet --check SHA256SUMS) || { echo "a part is missing or damaged: copy it again" >&2; exit 1; }
mkdir -p "$to"
to=$(cd "$to" && pwd)
trap 'rm -rf "$to"' ERR
cat "$here"/bundle.[0-9][0-9][0-9] | tar --extract --directory "$to" --no-same-owner
wants=$(sed -n 's/.*"python": "\(.*\)".*/\1/p' "$to/bundle.json")
is=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info[:2]))')
[ "$wants" = "$is" ] || { echo "the bundle is for Python $wants, $python is $is: set PYTHON, or bundle with --python $is" >&2; false; }
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$to/site" "$to"/wheels/*.whl
rm -r "$to/wheels"
cat > "$to/env.sh" <<END
export PYTHONPATH="$to/site\${PYTHONPATH:+:\$PYTHONPATH}"
export PATH="$to/site/bin:\$PATH"
export JUPYTER_PATH="$to/site/share/jupyter\${JUPYTER_PATH:+:\$JUPYTER_PATH}"
export PRLHF_KIT_CACHE="$to/cache" HF_HUB_OFFLINE=1
END
# shellcheck source=/dev/null
. "$to/env.sh"
"$python" -m prlhf_kit.runs.bundle "$to/site"
trap - ERR
echo "installed in $to. In each shell:  . $to/env.sh"
