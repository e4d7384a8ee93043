#!/bin/sh
# /bench/init of the guest that `tools/bench io` measures in: it runs the jobs of /bench/jobs, one function call each, and
# prints on the console
#
#   TANDEM-GUEST clocksource=NAME cpus=N    once, before the first job
#   TANDEM-JOB NAME UPTIME                  just before a job
#   TANDEM-DONE NAME UPTIME STATUS          just after it
#   TANDEM-OUT TEXT                         what it printed: JSON without blanks, or the reason of its failure
#   TANDEM-END NAME                         nothing more of this job
#   TANDEM-ERROR TEXT                       nothing more at all
#
# UPTIME is in seconds of the guest's clock: the host holds it against its own.

export PATH=/usr/bin:/bin:/sbin HOME=/

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
stty raw -echo
dmesg -n 1

end() {
    case $(cat /proc/cmdline) in
    *tandem.test=poweroff*) poweroff -f ;;
    *) reboot -f ;;
    esac
    while :; do sleep 3600; done
}

fail() {
    printf '\nTANDEM-ERROR %s\n' "$*"
    end
}

uptime() {
    read -r seconds _ </proc/uptime
    echo "$seconds"
}

# wait_for WHAT TEST...: until the test is true, for ten seconds at most.
wait_for() {
    what=$1 left=100
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "there is no $what in the guest"
        sleep 0.1
    done
}

# job NAME COMMAND...
job() {
    name=$1
    shift
    printf '\nTANDEM-JOB %s %s\n' "$name" "$(uptime)"
    "$@" >/tmp/out 2>/tmp/err </dev/null
    status=$?
    printf '\nTANDEM-DONE %s %s %s\n' "$name" "$(uptime)" "$status"
    if [ "$status" = 0 ]; then
        printf 'TANDEM-OUT %s\n' "$(tr -d ' \t\n' </tmp/out)"
    else
        printf 'TANDEM-OUT %s\n' "$(cat /tmp/err /tmp/out | tail -c 500 | tr '\n' ' ')"
    fi
    printf 'TANDEM-END %s\n' "$name"
}

for module in /lib/modules/*.ko; do
    [ -f "$module" ] && insmod "$module" 2>/dev/null
done
echo "TANDEM-GUEST clocksource=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource) cpus=$(nproc)"
. /bench/jobs
end
