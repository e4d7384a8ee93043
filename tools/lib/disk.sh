# shellcheck shell=bash
# A Debian server's disk, as an administrator would set it up by hand: GPT, an ext4 root file system, its own kernel and
# initrd from the packages, systemd, an SSH server, a web server, and the network by DHCP. Nothing in it knows of Tandem.
# Source it after common.sh.
#
#   disk_key            prints what the disk is made from: this recipe and the versions that apt offers
#   make_disk TMP       writes into TMP:
#                         disk.img               the disk, raw and sparse
#                         vmlinuz, initrd.img    copies of what its /boot holds
#                         id_ed25519             key that root may log in with
#
# It takes a minute or two, a network, and root; what is mounted meanwhile is in mmdebstrap's own namespace.

disk_recipe=${BASH_SOURCE[0]}

disk_suite=bookworm
# The server proper, and programs that tests start in it.
disk_packages=(systemd systemd-sysv udev dbus openssh-server nginx-light linux-image-cloud-amd64 initramfs-tools
    zstd iproute2 iputils-ping e2fsprogs kmod procps fio iperf3 socat ethtool)
disk_bytes=$((1 << 30))
# Where the partition begins, as every partitioning program has it.
disk_offset=$((1 << 20))

disk_tools() { printf '%s\n' mmdebstrap debian-archive-keyring fdisk e2fsprogs openssh-client uuid-runtime; }

disk_key() {
    local versions hash kernel needed
    mapfile -t needed < <(disk_tools)
    install_packages "${needed[@]}" >&2
    # The meta-package's version moves with the kernel's; the other lines are the release's own.
    versions=$(apt-cache policy "${disk_packages[@]}" 2>/dev/null | awk '/^[^ ]/ { name = $1 } /Candidate:/ { print name, $2 }')
    kernel=$(awk '$1 == "linux-image-cloud-amd64:" && $2 != "(none)" { print $2 }' <<<"$versions")
    [[ -n $kernel ]] || return 1
    hash=$(cat "$disk_recipe" - <<<"$versions" | sha256sum) || die "cannot read the recipe of the disk"
    printf '%s-%s\n' "$kernel" "${hash:0:16}"
}

# Debian's own among the sources of this machine's apt.
disk_sources() {
    # shellcheck disable=SC2016 # apt's variables
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI) $(COMPONENT)' 'Created-By: Packages' |
        awk -v suite="$disk_suite" '$1 == "Debian" && $2 ~ "^" suite && $4 == "main" {
            print "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]", $3, $2, $4 }' | sort -u
}

make_disk() {
    local tmp=$1 root=$1/root log=$1/log uuid packages
    [[ $(id -u) == 0 ]] || die "making a Debian disk needs root"
    say "Making a Debian server's disk: a minute or two"
    disk_sources >"$tmp/sources" && [[ -s $tmp/sources ]] || die "this machine's apt has no sources of Debian $disk_suite"
    uuid=$(uuidgen) || die "cannot make a UUID"
    ssh-keygen -q -t ed25519 -N '' -C tests -f "$tmp/id_ed25519" || die "cannot make an SSH key"
    packages=$(IFS=, && printf '%s' "${disk_packages[*]}")
    # initramfs-tools looks into fstab for the file system that the initrd must check: it is there before the kernel is.
    printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$uuid" >"$tmp/fstab"
    mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" --dpkgopt=force-unsafe-io \
        --essential-hook="cp '$tmp/fstab' \"\$1/etc/fstab\"" \
        --customize-hook='chroot "$1" systemctl --quiet enable systemd-networkd' \
        "$disk_suite" "$root" "$tmp/sources" >"$log" 2>&1 </dev/null || disk_failed "$log" "mmdebstrap"
    disk_administer "$root" "$tmp/id_ed25519.pub"
    cp "$root"/boot/vmlinuz-* "$tmp/vmlinuz" && cp "$root"/boot/initrd.img-* "$tmp/initrd.img" || die "the disk has no kernel"

    truncate -s "$disk_bytes" "$tmp/disk.img"
    printf 'label: gpt\nstart=%d, type=linux\n' $((disk_offset / 512)) |
        sfdisk --quiet "$tmp/disk.img" >"$log" 2>&1 || disk_failed "$log" sfdisk
    # The last 33 sectors are the second partition table's.
    mke2fs -q -t ext4 -U "$uuid" -L debian -d "$root" -E "offset=$disk_offset" "$tmp/disk.img" \
        $(((disk_bytes - disk_offset) / 1024 - 1024))k >"$log" 2>&1 || disk_failed "$log" mke2fs
    rm -rf "$root" "$log" "$tmp/sources" "$tmp/fstab" "$tmp/id_ed25519.pub"
    chmod 644 "$tmp"/{disk.img,vmlinuz,initrd.img}
}

# What an administrator does to a new server.
disk_administer() {
    local root=$1 key=$2
    echo debian >"$root/etc/hostname"
    : >"$root/etc/resolv.conf" # what came from this machine says nothing there
    echo LANG=C.UTF-8 >"$root/etc/default/locale"
    printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
    chroot "$root" systemd-machine-id-setup >/dev/null 2>&1 || die "cannot give the disk a machine ID"
    install -d -m 700 "$root/root/.ssh" && install -m 600 "$key" "$root/root/.ssh/authorized_keys" || die "cannot install the SSH key"
    printf '[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/80-dhcp.network"
    echo 'This is a Debian server.' >"$root/var/www/html/index.html"
}

disk_failed() {
    tail -n 20 "$1" >&2
    die "$2 failed; its last lines are above"
}
