# shellcheck shell=bash
# The toolbox: real programs and their libraries in a test guest's initramfs, beside busybox. Source it after common.sh.
#
#   toolbox_packages         prints the Debian packages it is made from
#   toolbox_files            prints the files that are taken from this machine, sorted: programs and libraries
#   toolbox_install ROOT     puts all of it into an initramfs tree
#
# Programs come to ROOT/usr/bin, libraries to where the dynamic linker looks first.

# What a test may call, and the package it is from. Commands run in dash: Debian's busybox shell takes its own applets for
# programs of the same name, whatever PATH says.
declare -A toolbox_program=(
    [dash]=dash
    [fio]=fio
    [mkfs.ext4]=e2fsprogs [e2fsck]=e2fsprogs [resize2fs]=e2fsprogs
    [blkdiscard]=util-linux [blockdev]=util-linux [lsblk]=util-linux
    [iperf3]=iperf3
    [socat]=socat
    [ethtool]=ethtool
    [ip]=iproute2
    [ping]=iputils-ping
    [rngtest]=rng-tools5
)

# Libraries of fio's for storage over a network and for persistent memory. They bring 60 MB more with them and no test
# uses them: a library without content stands in for each.
toolbox_without=(libgfapi.so.0 libibverbs.so.1 libnbd.so.0 libpmem.so.1 libpmemblk.so.1 librados.so.2 librbd.so.1 librdmacm.so.1)

toolbox_libraries=lib/x86_64-linux-gnu

toolbox_packages() { printf '%s\n' "${toolbox_program[@]}" binutils gcc libc6-dev | LC_ALL=C sort -u; }

toolbox_which() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" || die "there is no program $1 on this machine"; }

toolbox_files() {
    local name waiting=() more=() file without
    for name in "${!toolbox_program[@]}"; do waiting+=("$(toolbox_which "$name")") || exit; done
    without=" ${toolbox_without[*]} "
    # ldd names the libraries of libraries as well: here each file is asked for its own, to leave out all that only one
    # that is left out needs.
    declare -A seen=()
    while ((${#waiting[@]})); do
        more=()
        for file in "${waiting[@]}"; do
            [[ -z ${seen[$file]:-} ]] || continue
            seen[$file]=1
            while IFS= read -r name; do
                [[ $without == *" $name "* ]] || more+=("$(toolbox_library "$file" "$name")") || exit
            done < <(objdump -p "$file" | awk '$1 == "NEEDED" { print $2 }')
        done
        waiting=("${more[@]}")
    done
    printf '%s\n' "${!seen[@]}" | LC_ALL=C sort
}

# toolbox_library FILE NAME: where this machine finds the library that the file names.
toolbox_library() {
    local path
    path=$(ldd "$1" | awk -v name="$2" '$1 == name { print $3 } $1 ~ "/" && $1 ~ name "$" { print $1 }' | head -n 1)
    [[ -e $path ]] || die "$1 needs the library $2, which is not there"
    printf '%s\n' "$path"
}

toolbox_install() {
    local root=$1 file files name linker
    files=$(toolbox_files) || exit
    mkdir -p "$root/usr/bin" "$root/$toolbox_libraries" "$root/lib64"
    while IFS= read -r file; do
        case ${file##*/} in
        ld-linux*) install -m 755 "$file" "$root/$toolbox_libraries/" ;;
        *.so | *.so.*) install -m 644 "$file" "$root/$toolbox_libraries/" ;;
        *) install -m 755 "$file" "$root/usr/bin/" ;;
        esac || die "cannot copy $file"
    done <<<"$files"
    linker=ld-linux-x86-64.so.2
    [[ -e $root/$toolbox_libraries/$linker ]] || install -m 755 "/lib64/$linker" "$root/$toolbox_libraries/" || exit
    ln -s "../$toolbox_libraries/$linker" "$root/lib64/$linker"
    for name in "${toolbox_without[@]}"; do toolbox_stand_in "$(toolbox_which fio)" "$name" "$root/$toolbox_libraries/$name"; done
    cp /etc/mke2fs.conf "$root/etc/" || die "cannot copy /etc/mke2fs.conf"
}

# toolbox_stand_in PROGRAM NAME OUT: a library that has what PROGRAM asks of the library NAME, in the same versions; whoever
# calls it is ended by an illegal instruction.
toolbox_stand_in() {
    local program=$1 name=$2 out=$3 real symbols options=(-shared -nostdlib '-Wl,--build-id=none' "-Wl,-soname,$2")
    real=$(toolbox_library "$program" "$name") || exit
    symbols=$(comm -12 <(nm -D --undefined-only "$program" | awk '{ sub(/@.*/, "", $NF); print $NF }' | LC_ALL=C sort -u) \
        <(nm -D --defined-only "$real" | awk '{ sub(/@.*/, "", $NF); print $NF }' | LC_ALL=C sort -u))
    [[ -n $symbols ]] || die "$program uses nothing of $name"
    # shellcheck disable=SC2086 # one symbol a word
    printf 'void %s(void) { __builtin_trap(); }\n' $symbols >"$out.c"
    nm -D --undefined-only "$program" | awk 'NR == FNR { mine[$1]; more } split($NF, s, "@") == 2 && s[1] in mine {
            nodes[s[2]] = nodes[s[2]] " " s[1] ";" } END { for (n in nodes) print n " { global:" nodes[n] " };" }' \
        <(printf '%s\n' "$symbols") - | LC_ALL=C sort >"$out.map"
    [[ ! -s $out.map ]] || options+=("-Wl,--version-script,$out.map")
    cc "${options[@]}" -x c "$out.c" -o "$out" || die "cannot make a library in the place of $name"
    rm -f "$out.c" "$out.map"
}
