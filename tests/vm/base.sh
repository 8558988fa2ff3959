#!/bin/sh
# The root file system of the guests, in the folder $1: Debian 12 with systemd, its kernel and the one
# of its backports, and the packages that the installed service needs. To be run as root in a mount
# namespace of its own, which takes the mounts away with it. A change here makes the tree anew.
set -eu
tree=$1
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

debootstrap --variant=minbase --include=dbus,kmod,systemd-sysv,udev bookworm "$tree"
mount -t proc proc "$tree/proc"

cat > "$tree/etc/dpkg/dpkg.cfg.d/small" <<END
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
END
sed -n 's/bookworm/bookworm-backports/p' "$tree/etc/apt/sources.list" \
	> "$tree/etc/apt/sources.list.d/backports.list"
chroot "$tree" apt-get update -qq
install="chroot $tree apt-get install -y -qq --no-install-recommends"

# The initial RAM disk holds what finds the root file system, and no more: less to unpack in emulation.
$install initramfs-tools zstd
sed -i -e 's/^MODULES=.*/MODULES=list/' -e 's/^COMPRESS=.*/COMPRESS=zstd/' \
	"$tree/etc/initramfs-tools/initramfs.conf"
printf '%s\n' ext4 virtio_blk virtio_pci >> "$tree/etc/initramfs-tools/modules"
$install linux-image-cloud-amd64
$install -t bookworm-backports linux-image-cloud-amd64

# libbpf1 and python3-systemd are what the service needs; bpftool lists what it leaves behind.
$install libbpf1 python3 python3-systemd bpftool qemu-guest-agent
chroot "$tree" apt-get clean
rm -rf "$tree"/var/lib/apt/lists/*

echo guest > "$tree/etc/hostname"
echo '/dev/vda / ext4 defaults 0 1' > "$tree/etc/fstab"
chroot "$tree" passwd -q -d root
chroot "$tree" useradd --create-home --shell /bin/sh alice
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer getty@tty1.service; do
	ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
umount "$tree/proc"
