# shellcheck shell=bash
# Building the programs, for the scripts in tools/. Source it after common.sh.
#
#   build_static PACKAGE...   builds static release programs and sets $programs to the directory they are in
#
# Programs are static (musl), so that one build runs on the host, in the lab and in a guest's initramfs, and starts fast.

build_root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../..
build_target=${CARGO_TARGET_DIR:-$build_root/target}
triple=
programs=

# Sets $triple to what static programs are built for, and adds musl's to the toolchain where it is not there yet.
choose_triple() {
    local sysroot
    [[ -z $triple ]] || return 0
    command -v cargo >/dev/null || die "Rust is needed: install it with rustup (cargo and rustc on the PATH)"
    triple=x86_64-unknown-linux-musl
    sysroot=$(rustc --print sysroot) || die "rustc does not work"
    if [[ ! -d $sysroot/lib/rustlib/$triple ]] && ! rustup target add "$triple" >/dev/null 2>&1; then
        triple=x86_64-unknown-linux-gnu
        say "The target x86_64-unknown-linux-musl cannot be had (rustup target add): building against static glibc instead"
    fi
    # shellcheck disable=SC2034 # for whoever sources this
    programs=$build_target/$triple/release
}

build_static() {
    local flags=() packages=() package
    # Debian's linker and C library headers; a machine with Rust has them as a rule.
    command -v cc >/dev/null || install_packages gcc libc6-dev
    choose_triple
    [[ $triple == *-musl ]] || flags=(--config "target.$triple.rustflags=['-C','target-feature=+crt-static']")
    for package in "$@"; do packages+=(-p "$package"); done
    (cd "$build_root" && cargo build --quiet --release --target "$triple" "${flags[@]}" \
        --target-dir "$build_target" "${packages[@]}" >&2 </dev/null) || die "building $* failed; see above"
}
