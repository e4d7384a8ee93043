#!/bin/sh
# /bench/init of the guest that `tools/bench api --guest` asks beside: it reads and writes /dev/vda at random for ever, and says
# TANDEM-BUSY on the console once it has done so a thousand times.

export PATH=/usr/bin:/bin:/sbin HOME=/

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/shm /tmp
mount -t tmpfs tmpfs /dev/shm
dmesg -n 1
for module in /lib/modules/*.ko; do
    [ -f "$module" ] && insmod "$module" 2>/dev/null
done
until [ -b /dev/vda ]; do sleep 0.1; done

# Reads and writes that the disk has completed.
completed() {
    read -r reads _ _ _ writes _ </sys/block/vda/stat
    echo $((reads + writes))
}

before=$(completed)
fio --name=busy --filename=/dev/vda --rw=randrw --bs=4k --direct=1 --thread --ioengine=libaio --iodepth=32 \
    --time_based --runtime=86400 >/dev/null 2>/tmp/err </dev/null &
fio=$!
until [ "$(completed)" -gt $((before + 1000)) ]; do
    if ! kill -0 "$fio"; then
        echo "TANDEM-ERROR $(tail -c 500 /tmp/err)"
        reboot -f
    fi
    sleep 0.1
done
echo TANDEM-BUSY
wait
reboot -f
