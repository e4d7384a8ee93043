# shellcheck shell=bash
# Helpers shared by the scripts in tools/. Source it; it defines functions only.
#
#   say TEXT...        one line about what is being done, to stderr
#   progress TEXT...   the same, only where a person is watching (stderr is a terminal) or TANDEM_VERBOSE=1
#   die TEXT...        the error, to stderr; ends the script with 1
#   cache_dir          prints the cache directory and makes it
#   install_packages   see below
#
# Everything goes to stderr, so that a script's stdout stays its answer.

say() { printf '%s\n' "$*" >&2; }
progress() { if [[ -t 2 || ${TANDEM_VERBOSE:-0} == 1 ]]; then say "$@"; fi; }
die() {
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

cache_dir() {
    local dir=${TANDEM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tandem}
    mkdir -p "$dir" || die "cannot make the cache directory $dir (set TANDEM_CACHE to a writable place)"
    printf '%s\n' "$dir"
}

# Prints those of the named Debian packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s\n' "$package"
    done
}

# install_packages NAME...: installs those that are missing, and does nothing at all when none is.
install_packages() {
    local missing log
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} == 0)) && return 0
    [[ $(id -u) == 0 ]] ||
        die "these Debian packages are needed: ${missing[*]} (run as root, or first: apt-get install ${missing[*]})"
    log=$(mktemp)
    say "Installing Debian packages: ${missing[*]}"
    # The lists may be absent or old: refresh them only when the first attempt shows it.
    if ! apt_install "$log" "${missing[@]}"; then
        say "Refreshing the package lists"
        if ! apt-get -qq update >>"$log" 2>&1 || ! apt_install "$log" "${missing[@]}"; then
            tail -n 20 "$log" >&2
            rm -f "$log"
            die "apt-get could not install ${missing[*]}; its last lines are above"
        fi
    fi
    rm -f "$log"
}

apt_install() {
    local log=$1
    shift
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 install "$@" >>"$log" 2>&1 </dev/null
}
