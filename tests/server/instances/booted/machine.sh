#!/bin/bash
# Boots the systemd of a root file system as PID 1, in namespaces of its own, once for each line of standard input. The
# one before is killed first, as by a power cut; the end of the input ends everything, also when whoever asked has died.
#
#   unshare --mount --propagation private machine.sh supervise LOWER FOLDER NAME
#
# LOWER is the root file system, or several with a colon between, as overlayfs takes them: they are only read, and what
# is written is in memory. The machine sees FOLDER/shared as /run/host, and its manager says at /run/host/notify when it
# has booted. FOLDER/work is mounted over. NAME is that of the cgroups that everything inside is below.
#
# All mounts are in the mount namespace that this is called in, or in one below, and go away with it. Nothing of the
# machine around is mounted inside, /run/host apart, so that what cleans /tmp and /run at boot cleans its own.
set -euo pipefail

# Those that systemd needs: the unified hierarchy, or else its own, and the one with the CPU controller.
hierarchies=(systemd unified cpu)
[ ! -e /sys/fs/cgroup/cgroup.controllers ] || hierarchies=(.)

supervise() {
    lower=$1 folder=$2 name=$3
    cgroups=("${hierarchies[@]/%//$name}")
    booted=
    trap end EXIT
    mount -t tmpfs -o mode=755 tmpfs "$folder/work"
    mkdir "$folder/work/"{upper,work,root}
    mount -t overlay -o "lowerdir=$lower,upperdir=$folder/work/upper,workdir=$folder/work/work" overlay \
        "$folder/work/root"
    (cd /sys/fs/cgroup && mkdir "${cgroups[@]}")
    while read -r _; do
        cut_power
        unshare --mount --pid --uts --ipc --net --fork --kill-child "$0" boot "$folder" "$name" </dev/null &
        booted=$!
    done
}

# PID 1 is the only child of unshare, which returns when the last process of the namespace is gone.
cut_power() {
    [ -n "$booted" ] || return 0
    processes=()
    read -r -a processes <"/proc/$booted/task/$booted/children" || : # there is no newline in it
    kill -KILL "${processes[@]:-$booted}" || :
    wait "$booted" || :
    booted=
}

end() {
    cut_power
    cd /sys/fs/cgroup
    # A process that has ended, and was waited for, may be in its cgroup for a moment still (Linux 6.18).
    for _ in {1..1000}; do
        ! remove_cgroups 2>/dev/null || return 0
        sleep 0.01
    done
    remove_cgroups
}

remove_cgroups() {
    left=()
    for each in "${cgroups[@]}"; do
        [ ! -d "$each" ] || left+=("$each")
    done
    [ "${#left[@]}" = 0 ] || find "${left[@]}" -depth -type d -exec rmdir {} +
}

# This is PID 1 from here on. Its cgroup namespace begins at the cgroups that it is in.
boot() {
    folder=$1 name=$2
    for each in "${hierarchies[@]}"; do
        echo 0 >"/sys/fs/cgroup/$each/$name/cgroup.procs"
    done
    exec unshare --cgroup "$0" enter "$folder" "$name"
}

enter() {
    folder=$1 name=$2
    cd "$folder/work/root"
    mkdir -p outside
    mount -t proc proc proc
    for each in sys sysrq-trigger irq bus; do
        [ -e "proc/$each" ] || continue
        mount --bind "proc/$each" "proc/$each"
        mount -o remount,bind,ro "proc/$each"
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
    mount_cgroups
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    mknod -m 666 dev/null c 1 3
    mknod -m 666 dev/zero c 1 5
    mknod -m 666 dev/full c 1 7
    mknod -m 666 dev/random c 1 8
    mknod -m 666 dev/urandom c 1 9
    mknod -m 666 dev/tty c 5 0
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    mount -t devpts -o newinstance,mode=620,ptmxmode=666 devpts dev/pts
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    mkdir run/host
    mount --bind "$folder/shared" run/host
    pivot_root . outside
    umount --lazy /outside
    rmdir /outside
    # what reaches beyond the namespaces
    exec setpriv --bounding-set=-sys_boot,-sys_module,-sys_rawio,-sys_time,-syslog \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin container=vgpud NOTIFY_SOCKET=/run/host/notify \
        /lib/systemd/systemd systemd.unit=basic.target systemd.mask=timers.target
}

mount_cgroups() {
    if [ "${hierarchies[0]}" = . ]; then
        mount --bind "/sys/fs/cgroup/$name" sys/fs/cgroup
        return
    fi
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    for each in "${hierarchies[@]}"; do
        mkdir "sys/fs/cgroup/$each"
        mount --bind "/sys/fs/cgroup/$each/$name" "sys/fs/cgroup/$each"
    done
    ln -s cpu sys/fs/cgroup/cpuacct # which systemd takes to be one with it
    mount -o remount,ro sys/fs/cgroup # else systemd mounts the others
}

"$@"
