# shellcheck shell=sh
# What demo, test, check and bench share: a virtual environment, system packages, data.
# The caller sets `root`, the folder of the checkout. Every step that is done already costs nothing:
# it leaves a stamp, named after the step, that holds the hash of what went into it.

build=$root/build
venv=${VENV:-$root/.venv}

say() { printf '%s\n' "== $*" >&2; }
fail() {
    printf '%s\n' "${0##*/}: $*" >&2
    exit 1
}

# --- system packages ------------------------------------------------------------------------------

# as_root COMMAND...: runs it as root, without ever asking for a password; fails where that is not to be had.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@" </dev/null
    else
        sudo -n "$@" </dev/null
    fi
}

may_be_root() { [ "$(id -u)" -eq 0 ] || { command -v sudo && sudo -n true; } >/dev/null 2>&1; }

apt_install() {
    say "installing $* with apt-get"
    mkdir -p "$build"
    {
        # A list that cannot be fetched matters only where it is needed, and then the next line says so.
        as_root apt-get -q update || true
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install --no-install-recommends -y "$@"
    } >"$build/apt.log" 2>&1 || {
        tail -n 20 "$build/apt.log" >&2
        fail "apt-get cannot install $*"
    }
}

# unpack PACKAGE: its files below build/system, for which nobody has to be root.
unpack() {
    say "fetching $1 into build/system, as there is no root to install it"
    mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial" "$build/apt/packages"
    (
        cd "$build/apt/packages" &&
            own_apt update &&
            own_apt download "$1" &&
            dpkg -x "$1"_*.deb "$build/system"
    ) </dev/null >&2
}

# own_apt ARGUMENT...: apt-get with lists and a cache of its own, in the build folder.
own_apt() {
    apt-get -q -q -o "Dir::State::Lists=$build/apt/lists" -o "Dir::Cache=$build/apt/cache" "$@"
}

# need COMMAND PACKAGE: the command is there, or is installed.
need() { command -v "$1" >/dev/null || lacks "$1" "$2"; }

# need_file FILE PACKAGE: the file is there, or is installed.
need_file() { [ -e "$1" ] || lacks "$1" "$2"; }

lacks() {
    may_be_root || fail "$1 is missing: run 'sudo apt-get install $2'"
    apt_install "$2"
}

# --- Python ---------------------------------------------------------------------------------------

# find_python: prints the path of a Python 3.10 to 3.13 that is not a virtual environment's.
find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c '
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null && return
    done
    return 1
}

# done_already FOLDER STEP TEXT...: whether the step left its stamp, made from the same texts.
done_already() {
    stamp=$1/$2
    shift 2
    key=$(printf '%s\n' "$@" | sha256sum)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]
}

# mark: the step that was asked for last is done.
mark() {
    mkdir -p "${stamp%/*}"
    printf '%s\n' "$key" >"$stamp"
}

# make_venv FOLDER [PYTHON]: a virtual environment, made anew where the Python or the place has changed.
make_venv() {
    python=${2:-$(find_python)} || true
    [ -n "$python" ] ||
        fail "no Python 3.10 to 3.13 found; install one, or name it: PYTHON=/path/to/python3 $0"
    identity=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
    done_already "$1/stamps" venv "$1" "$identity" && return
    if [ -e "$1" ] && [ ! -d "$1/stamps" ]; then
        fail "$1 was not made by these scripts: move it away, or name another folder: VENV=FOLDER $0"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        may_be_root || fail "$python cannot make virtual environments: run 'sudo apt-get install $package'"
        apt_install "$package"
    fi
    say "making $1 with Python ${identity%% *}"
    rm -rf "$1"
    # First the mark that it is ours, so that an interrupted run can be repeated.
    mkdir -p "$1/stamps"
    "$python" -m venv "$1"
    mark
}

# pip_install VENV STEP TEXT REQUIREMENT...: installs, unless it did so from the same text; fails if it cannot.
pip_install() {
    into=$1 step=$2 text=$3
    shift 3
    done_already "$into/stamps" "$step" "$text" "$@" && return
    pip_run "$into" "$@" || return 1
    mark
}

# pip_run VENV REQUIREMENT...: installs.
pip_run() {
    into=$1
    shift
    say "installing $*"
    "$into/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" </dev/null >&2
}

# tensorflow VENV: prints the requirement of a TensorFlow that fits the environment's Python.
tensorflow() {
    "$1/bin/python" -c '
import platform, sys
name = "tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow"
print(name + ("==2.15.1" if sys.version_info < (3, 12) else "==2.21.0"))'
}

# sources: a hash of all that the package is built from.
sources() {
    (cd "$root" && find setup.py pyproject.toml README.md LICENSE bin sm_runtime sagemaker_tensorflow -type f \
        ! -name '*.py[cod]' -exec sha256sum {} + | LC_ALL=C sort)
}

# have_wheel: sets `wheel` to this package's wheel, built from the checkout as it stands.
have_wheel() {
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/sm_runtime/__init__.py")
    wheel=$build/dist/sm_runtime-$version-py3-none-any.whl
    done_already "$build/dist" stamp "$(sources)" && [ -f "$wheel" ] && return
    say "building $wheel"
    rm -rf "$build/lib" "$build/bdist."* "$build/dist" # or the wheel has what an earlier build left
    "$venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-input --no-deps \
        --wheel-dir "$build/dist" "$root" </dev/null >&2
    mark
}

# install_runtime [EXTRA]: .venv with TensorFlow and this package, installed as users install it, from its wheel;
# with what an extra names beside it. With FROM_CHECKOUT=1 the checkout's modules are used in place.
install_runtime() {
    make_venv "$venv"
    pip_install "$venv" tensorflow "" "$(tensorflow "$venv")"
    if [ "${FROM_CHECKOUT-}" = 1 ]; then
        set -- "${1-}" --editable "$root"
        pip_install "$venv" runtime "$(cat "$root/setup.py" "$root/bin"/*)" --no-deps --editable "$root"
    else
        have_wheel
        set -- "${1-}" "$wheel"
        pip_install "$venv" runtime "$(sources)" --force-reinstall --no-deps "$wheel"
    fi
    extra=$1
    shift
    # The last word is the package: with --editable before it, or pip would put a copy in its place.
    # Without an extra it is what the package requires that is added. Both forms require the same: it is not
    # installed anew when they take turns.
    done_already "$venv/stamps" "${extra:-required}" "$(cat "$root/setup.py")" || {
        pip_run "$venv" "$@${extra:+[$extra]}"
        mark
    }
}

# install_examples: what preparing the examples' data needs, held to the NumPy that TensorFlow can use.
install_examples() {
    pip_install "$venv" examples "" scikit-learn "$(tensorflow "$venv")"
}

# --- data -----------------------------------------------------------------------------------------

# find_fashion_mnist: sets `source` to the folder of the data set, fetched where it is missing.
find_fashion_mnist() {
    for source in "$build/system/usr/share/datasets/fashion-mnist" /usr/share/datasets/fashion-mnist; do
        [ ! -d "$source" ] || return 0
    done
    if may_be_root; then
        apt_install dataset-fashion-mnist
    else
        unpack dataset-fashion-mnist ||
            fail "cannot fetch the data: run 'sudo apt-get install dataset-fashion-mnist'"
        source=$build/system$source
    fi
}
