#!/bin/bash
# Kernels and initramfs images that the tools and tests need: fetched or made once, kept outside the tree.
#
#   tools/lib/artifacts.sh get NAME    prints the path of an artifact, making it first where need be
#   tools/lib/artifacts.sh list        the names
#
# Layout: <cache>/artifacts/NAME/VERSION-HASH/..., beside it VERSION-HASH.sha256 (checked at every use: what does not
# match is made again) and `current`, which names the one in use. HASH is that of the package or of the sources.
# One flock per name makes concurrent callers wait for one another; what is made appears by rename, whole or not at all.
# apt decides the versions, asked once a day (TANDEM_ARTIFACT_TTL seconds); offline, what is cached is used.
#
# As a library: source it and call `artifact NAME`.

artifacts_lib=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=tools/lib/common.sh
. "$artifacts_lib/common.sh"
# shellcheck source=tools/lib/toolbox.sh
. "$artifacts_lib/toolbox.sh"
# shellcheck source=tools/lib/disk.sh
. "$artifacts_lib/disk.sh"

test_init=$artifacts_lib/../../resources/test-guest/init

# Kernel artifacts: NAME -> the Debian meta-package whose dependency is the kernel.
declare -A kernel_package=(
    [6.12-cloud]=linux-image-6.12-cloud-amd64
    [6.1-cloud]=linux-image-cloud-amd64
    [6.12]=linux-image-6.12-amd64
)
# What `powerbutton` and `rng` in the test guest need, where the kernel has it as a module.
test_modules=(button evdev virtio_mmio virtio-rng)
# What a toolbox guest loads besides: transports first, then all that a VM can have.
toolbox_modules=(virtio_pci virtio_mmio virtio_blk virtio_net virtio_console virtio_balloon
    vmw_vsock_virtio_transport ext4 crc32c_generic crc32c-intel af_packet)

artifact_names() {
    local flavour
    for flavour in 6.12-cloud 6.1-cloud 6.12; do
        printf '%s\n' "kernel-$flavour" "bzimage-$flavour" "vmlinux-$flavour" "initramfs-test-$flavour" "initramfs-toolbox-$flavour"
    done
    printf '%s\n' initramfs-test disk-debian
}

# artifact NAME: prints its path.
artifact() {
    local name=$1 flavour kernel
    flavour=${name#*-}
    flavour=${flavour#test-} flavour=${flavour#toolbox-}
    if [[ $name != initramfs-test && $name != disk-debian && -z ${kernel_package[$flavour]:-} ]]; then
        die "no artifact is named '$name' (known: $(artifact_names | tr '\n' ' '))"
    fi
    case $name in
    kernel-*) locked "$name" get_kernel "$name" "$flavour" ;;
    bzimage-*)
        kernel=$(artifact "kernel-$flavour") || exit
        printf '%s\n' "$kernel/vmlinuz"
        ;;
    vmlinux-*)
        kernel=$(artifact "kernel-$flavour") || exit
        locked "$name" get_made "$name" "$(basename "$kernel")" vmlinux make_vmlinux "$kernel"
        ;;
    initramfs-test)
        locked "$name" get_made "$name" "$(initramfs_key)" initramfs.cpio make_initramfs ''
        ;;
    initramfs-test-*)
        kernel=$(artifact "kernel-$flavour") || exit
        locked "$name" get_made "$name" "$(basename "$kernel")-$(initramfs_key)" initramfs.cpio make_initramfs "$kernel"
        ;;
    initramfs-toolbox-*)
        kernel=$(artifact "kernel-$flavour") || exit
        locked "$name" get_made "$name" "$(basename "$kernel")-$(toolbox_key)" initramfs.cpio make_initramfs "$kernel" toolbox
        ;;
    disk-debian) locked "$name" get_disk "$name" ;;
    *) die "no artifact is named '$name' (known: $(artifact_names | tr '\n' ' '))" ;;
    esac
}

# locked NAME FUNCTION ARGS...: runs it with $dir set to the artifact's directory, alone among all callers.
locked() {
    local name=$1 root dir
    shift
    root=$(cache_dir) || exit
    dir=$root/artifacts/$name
    mkdir -p "$dir" || die "cannot make $dir"
    (
        exec {lock}>>"$dir/.lock"
        flock "$lock"
        "$@"
    )
}

# Records the hashes of everything below $dir/$1; depmod's and other made files included.
record() {
    (cd "$dir" && find "$1" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >"$dir/$1.sha256.tmp" &&
        mv "$dir/$1.sha256.tmp" "$dir/$1.sha256"
}

# Is version $1 there, and byte for byte what was recorded?
intact() {
    [[ -n $1 && -d $dir/$1 && -s $dir/$1.sha256 ]] || return 1
    (cd "$dir" && sha256sum --status --strict -c "$1.sha256" 2>/dev/null) && return 0
    say "The cached ${dir##*/} ($1) is damaged: making it again"
    rm -rf "${dir:?}/$1" "$dir/$1.sha256"
    return 1
}

# publish TMP VERSION: gives a finished directory its name, makes it current, and drops the ones before it.
publish() {
    local old
    rm -rf "${dir:?}/$2" "$dir/$2.sha256"
    if ! { mv "$1" "$dir/$2" && record "$2" && printf '%s\n' "$2" >"$dir/current.tmp" && mv "$dir/current.tmp" "$dir/current"; }; then
        die "cannot write to $dir"
    fi
    # A version that something may still be using is left alone for a week.
    find "$dir" -mindepth 1 -maxdepth 1 -type d ! -name "$2" -mtime +7 -print0 |
        while IFS= read -r -d '' old; do rm -rf "$old" "$old.sha256"; done
}

scratch() {
    find "$dir" -mindepth 1 -maxdepth 1 -name '.tmp.*' -exec rm -rf {} + # left by a killed run: we hold the lock
    mktemp -d "$dir/.tmp.XXXXXX" || die "cannot write to $dir"
}

# --- made from other artifacts -----------------------------------------------------------------------------------

# get_made NAME KEY FILE FUNCTION ARGS...: the function writes FILE into the directory it is given first.
get_made() {
    local name=$1 key=$2 file=$3 make=$4 tmp
    shift 4
    if ! intact "$key"; then
        tmp=$(scratch) || exit
        progress "Making $name ($key)"
        "$make" "$tmp" "$@"
        [[ -s $tmp/$file ]] || die "making $name failed"
        chmod 755 "$tmp"
        publish "$tmp" "$key"
    fi
    printf '%s\n' "$dir/$key/$file"
}

le32() { od -An -tu4 -j "$2" -N 4 "$1" | tr -d ' '; }

# The ELF image inside a bzImage: Linux's Documentation/arch/x86/boot.rst, payload_offset and payload_length.
make_vmlinux() {
    local out=$1/vmlinux image=$2/vmlinuz setup start length size magic tool
    [[ $(od -An -c -j 514 -N 4 "$image" | tr -d ' ') == HdrS ]] || die "$image is not a bzImage"
    setup=$(od -An -tu1 -j 497 -N 1 "$image" | tr -d ' ')
    ((setup == 0)) && setup=4
    start=$(((setup + 1) * 512 + $(le32 "$image" 584)))
    length=$(le32 "$image" 588)
    size=$(le32 "$image" $((start + length - 4)))
    magic=$(od -An -tx1 -j "$start" -N 4 "$image" | tr -d ' ')
    # All but gzip are followed by the unpacked size, which is not part of the stream.
    case $magic in
    1f8b*) tool=gzip ;;
    fd377a58) tool=xz length=$((length - 4)) ;;
    28b52ffd) tool=zstd length=$((length - 4)) ;;
    02214c18) tool=lz4 length=$((length - 4)) ;;
    425a68*) tool=bzip2 length=$((length - 4)) ;;
    5d0000*) tool='xz --format=lzma' length=$((length - 4)) ;;
    *) die "$image is compressed in a way that is not known here (magic $magic)" ;;
    esac
    command -v "${tool%% *}" >/dev/null || install_packages "$(tool_package "${tool%% *}")"
    # shellcheck disable=SC2086 # $tool may hold an option
    tail -c +$((start + 1)) "$image" | head -c "$length" | $tool -dc >"$out" 2>/dev/null
    [[ $(stat -c %s "$out") == "$size" ]] || die "unpacking $image gave $(stat -c %s "$out") bytes, not $size"
    [[ $(od -An -tx1 -N 4 "$out" | tr -d ' ') == 7f454c46 ]] || die "what $image holds is not an ELF file"
}

tool_package() { if [[ $1 == xz ]]; then echo xz-utils; else echo "$1"; fi; }

# All that goes into the initramfs: the busybox binary, the init script and this recipe.
initramfs_key() {
    install_packages busybox-static cpio xz-utils >&2
    local hash
    hash=$(cat "$(command -v busybox)" "$test_init" "$artifacts_lib/artifacts.sh" | sha256sum) ||
        die "cannot read $test_init or busybox"
    printf '%s\n' "${hash:0:16}"
}

# The same, and what the toolbox is made from.
toolbox_key() {
    local packages hash key files
    mapfile -t packages < <(toolbox_packages)
    install_packages "${packages[@]}" >&2
    key=$(initramfs_key) && files=$(toolbox_files) || exit
    mapfile -t files <<<"$files"
    hash=$(cat "${files[@]}" "$artifacts_lib/toolbox.sh" /etc/mke2fs.conf | sha256sum) || die "cannot read the toolbox's files"
    printf '%s-%s\n' "$key" "${hash:0:16}"
}

# make_initramfs TMP KERNEL [toolbox]: KERNEL is where its modules are, empty for none.
make_initramfs() {
    local tmp=$1 kernel=$2 root=$1/root modules=("${test_modules[@]}") applet module
    mkdir -p "$root"/{bin,dev,etc,proc,run,sys,tmp,lib/modules}
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    ln -s bin "$root/sbin"
    install -m 755 "$test_init" "$root/init"
    if [[ ${3:-} == toolbox ]]; then
        toolbox_install "$root"
        modules+=("${toolbox_modules[@]}")
    fi
    # In the order of loading, unpacked: busybox insmod takes them one after the other.
    if [[ -n $kernel ]]; then
        local number=10
        while IFS= read -r module; do
            unpack_module "$kernel" "$module" "$root/lib/modules/$number-$(basename "${module%.ko*}").ko"
            number=$((number + 1))
        done < <(module_closure "$kernel" "${modules[@]}")
    fi
    find "$root" -exec touch -h -d @0 {} +
    chmod -R u=rwX,go=rX "$root"
    (cd "$root" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        cpio --null --create --format=newc --reproducible --owner=0:0 --quiet) >"$tmp/initramfs.cpio"
    rm -rf "$root"
}

unpack_module() {
    case $2 in
    *.xz) xz -dc "$1/$2" >"$3" ;;
    *.zst) zstd -dcq "$1/$2" >"$3" ;;
    *) cp "$1/$2" "$3" ;;
    esac || die "cannot unpack the module $2"
}

# module_closure KERNEL NAME...: the files of the modules and of what they depend on, dependencies first, each once.
# A name that is not in modules.dep is built in, or not there at all: nothing to load.
module_closure() {
    local deps name
    deps=$(echo "$1"/lib/modules/*/modules.dep)
    shift
    for name in "$@"; do
        awk -F: -v name="$name" '{ n = $1; sub(/.*\//, "", n); sub(/\.ko.*/, "", n) }
            n == name { k = split($2, d, " "); for (; k; k--) print d[k]; print $1 }' "$deps"
    done | awk '!seen[$0]++' | sed "s,^,lib/modules/$(basename "$(dirname "$deps")")/,"
}

# --- the Debian disk ----------------------------------------------------------------------------------------------

# Without package lists or a network, a disk that was made before does.
get_disk() {
    local name=$1 current='' key
    [[ -s $dir/current ]] && current=$(<"$dir/current")
    if ! key=$(disk_key) && [[ -z $current && $(id -u) == 0 ]]; then
        progress "Refreshing the package lists"
        apt-get -qq update >&2 </dev/null
        key=$(disk_key)
    fi
    [[ -n $key || -n $current ]] || die "apt knows no package linux-image-cloud-amd64 (is this Debian 12?)"
    if [[ -n $key ]] && ! (get_made "$name" "$key" disk.img make_disk >/dev/null); then
        intact "$current" || exit 1
        say "Could not make it; using the cached $current"
        key=$current
    fi
    printf '%s\n' "$dir/${key:-$current}/disk.img"
}

# --- kernels ------------------------------------------------------------------------------------------------------

get_kernel() {
    local name=$1 package=${kernel_package[$2]} current='' wanted
    [[ -s $dir/current ]] && current=$(<"$dir/current")
    intact "$current" || current=''
    if [[ -n $current && -n $(find "$dir/current" -newermt "-${TANDEM_ARTIFACT_TTL:-86400} seconds") ]]; then
        printf '%s\n' "$dir/$current"
        return
    fi
    if wanted=$(kernel_candidate "$package") && [[ -n $wanted ]]; then
        if [[ $current == "${wanted##* }"-* ]]; then
            touch "$dir/current"
        else
            fetch_kernel "$name" "${wanted% *}" "${wanted##* }" "$current"
            current=$(<"$dir/current")
        fi
    elif [[ -z $current ]]; then
        die "apt knows no package $package, and none is cached (is this Debian 12 with its security updates enabled?)"
    fi
    printf '%s\n' "$dir/$current"
}

# Prints "PACKAGE VERSION" of the kernel that a meta-package stands for.
kernel_candidate() {
    local package version
    package=$(apt-cache depends --important "$1" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    if [[ -z $package && $(id -u) == 0 ]]; then
        progress "Refreshing the package lists"
        apt-get -qq update >&2 </dev/null || return 1
        package=$(apt-cache depends --important "$1" | awk '/Depends: linux-image-/ { print $2; exit }')
    fi
    [[ -n $package ]] || return 1
    version=$(apt-cache policy "$package" | awk '/Candidate:/ { print $2 }')
    [[ -n $version && $version != '(none)' ]] && printf '%s %s\n' "$package" "$version"
}

download_deb() { (cd "$1" && apt-get -q -o APT::Sandbox::User=root download "$2" >apt.log 2>&1 </dev/null); }

fetch_kernel() {
    local name=$1 package=$2 version=$3 current=$4 tmp deb hash base
    tmp=$(scratch) || exit
    say "Fetching the kernel package $package $version"
    if ! download_deb "$tmp" "$package=$version"; then
        # The lists may name a version that the archive has since replaced.
        if [[ $(id -u) == 0 ]]; then
            apt-get -qq update >&2 </dev/null
            wanted=$(kernel_candidate "${kernel_package[${name#kernel-}]}") && package=${wanted% *} version=${wanted##* }
        fi
        if ! download_deb "$tmp" "$package=$version"; then
            if [[ -n $current ]]; then
                say "Could not fetch it; using the cached $current"
                rm -rf "$tmp"
                return
            fi
            tail -n 5 "$tmp/apt.log" >&2
            die "could not fetch $package $version, and none is cached"
        fi
    fi
    deb=$(echo "$tmp"/*.deb)
    hash=$(sha256sum "$deb") || die "cannot read $deb"
    install_packages kmod
    mkdir "$tmp/unpacked" "$tmp/done"
    dpkg-deb -x "$deb" "$tmp/unpacked" || die "cannot unpack $deb"
    base=$(basename "$tmp"/unpacked/boot/vmlinuz-*)
    base=${base#vmlinuz-}
    mv "$tmp/unpacked/boot/vmlinuz-$base" "$tmp/done/vmlinuz"
    mv "$tmp/unpacked/boot/config-$base" "$tmp/done/config"
    mv "$tmp/unpacked/boot/System.map-$base" "$tmp/done/System.map"
    if [[ -d $tmp/unpacked/lib/modules ]]; then mv "$tmp/unpacked/lib" "$tmp/done/lib"; else mv "$tmp/unpacked/usr/lib" "$tmp/done/lib"; fi
    printf '%s\n' "$base" >"$tmp/done/release"
    # The package leaves the index of its modules to be made after installation.
    "$(command -v depmod || echo /sbin/depmod)" -b "$tmp/done" "$base" || die "depmod failed for $base"
    chmod -R u+rwX,go+rX "$tmp/done"
    publish "$tmp/done" "$version-${hash:0:12}"
    rm -rf "$tmp"
}

# --- as a command -------------------------------------------------------------------------------------------------

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -u -o pipefail
    case ${1:-} in
    get)
        (($# == 2)) || die "usage: artifacts.sh get NAME"
        artifact "$2"
        ;;
    list) artifact_names ;;
    *) die "usage: artifacts.sh get NAME | list" ;;
    esac
fi
