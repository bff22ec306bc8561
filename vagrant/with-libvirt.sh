#!/bin/bash
# with-libvirt.sh PLACE COMMAND…: runs COMMAND, as root, beside a libvirtd of its own, both in namespaces of their own
# (network, mount, pid), with all their state in the directory PLACE. When COMMAND ends, so do libvirtd and its guests.
# `with-libvirt.sh build/vm/mine bash`, then `cd vagrant; vagrant up k6-1; vagrant ssh k6-1`, is a guest to look around in.
set -euo pipefail
if [ "$1" != --inside ]; then
	mkdir -p "$1"
	exec unshare --net --mount --pid --fork --kill-child --mount-proc -- "$0" --inside "$@"
fi
place=$(realpath "$2")
shift 2
ip link set lo up
rm -rf "${place:?}/etc" "${place:?}/lib" "${place:?}/machines" # of guests that ended with their libvirtd
mkdir -p "$place/lib" /run/libvirt
cp -a /etc/libvirt "$place/etc"
rm -f "$place/etc/qemu/networks/autostart/"*
# Nobody is here to confine qemu from, and no virtlogd to send its console to.
printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'cgroup_controllers = [ ]' \
	'stdio_handler = "file"' 'namespaces = [ ]' > "$place/etc/qemu.conf"
mount --bind "$place/etc" /etc/libvirt
mount --bind "$place/lib" /var/lib/libvirt
mount -t tmpfs tmpfs /run/libvirt
libvirtd --pid-file "$place/libvirtd.pid" 2> "$place/libvirtd.log" &
for _ in $(seq 1200); do
	[ -S /run/libvirt/libvirt-sock ] && break
	sleep 0.1
done
[ -S /run/libvirt/libvirt-sock ] || {
	echo "libvirtd does not start: $(tail -n 1 "$place/libvirtd.log")" >&2
	exit 2
}
export VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_DOTFILE_PATH="$place/machines"
export VAGRANT_HOME="${VAGRANT_HOME:-$(dirname "$place")/vagrant-home}"
"$@"
