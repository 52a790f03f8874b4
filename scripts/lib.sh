# shellcheck shell=sh
# Functions that the scripts here share. They are sourced at the top of the source tree.

# What it takes to build; the scripts add what it takes to run.
# shellcheck disable=SC2034 # used there
BUILD_PACKAGES='gcc libc6-dev cmake ninja-build pkg-config libpq-dev liblua5.4-dev lua5.4 libssl-dev
zlib1g-dev libjansson-dev libmicrohttpd-dev libncurses-dev'

# quietly TEXT COMMAND...: says TEXT, shows what the command writes only if it fails.
quietly() {
    echo "$1" >&2
    shift
    quietly_log=$(mktemp) || return
    if "$@" >"$quietly_log" 2>&1 </dev/null; then
        rm -f "$quietly_log"
    else
        set -- $?
        cat "$quietly_log" >&2
        rm -f "$quietly_log"
        return "$1"
    fi
}

# as_root COMMAND...: by sudo where we are not root, which may ask for a password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "Not root, and there is no sudo to run: $*" >&2
        return 1
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 \
        apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends "$@"
}

# Debian's postgresql-15 makes and starts a cluster when it is installed, which nobody asked for
# here. One that exists, or a choice that was made, is left alone.
without_main_cluster() {
    if ! is_installed postgresql-common && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        as_root mkdir -p /etc/postgresql-common &&
            echo 'create_main_cluster = false' |
            as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
}

# install_missing PACKAGE...: with apt-get, if any is missing.
install_missing() {
    missing=
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "These Debian packages, or what they are called here, are needed:$missing" >&2
        return 1
    fi
    # Ask for the password here, where the question can be seen.
    as_root true || return
    quietly "Reading the package lists ..." apt update || return
    without_main_cluster || return
    # shellcheck disable=SC2086 # one word a package
    quietly "Installing$missing ..." apt install $missing
}

# build DIR CMAKE_OPTION...: configures and builds into DIR; what is built already stays.
build() {
    build_dir=$1
    shift
    # A folder keeps the generator that it was made with.
    if [ ! -e "$build_dir/CMakeCache.txt" ] && command -v ninja >/dev/null; then
        set -- -G Ninja "$@"
    fi
    quietly "Configuring $build_dir/ ..." cmake -S . -B "$build_dir" "$@" &&
        quietly "Building $build_dir/ ..." cmake --build "$build_dir" --parallel
}
