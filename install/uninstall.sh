#!/bin/sh
# Removes what install.sh has installed, and says what it leaves. Started by 'make uninstall'.
set -eu
: "${PREFIX:=/usr/local}" "${SYSCONFDIR:=/etc}" "${DESTDIR:=}"
to=$DESTDIR$PREFIX
unit=$to/lib/systemd/system/dynahugd.service
configuration=$DESTDIR$SYSCONFDIR/dynahugd.toml

{ test ! -e "$to/lib" || test -w "$to/lib"; } || {
	echo "dynahugd: cannot remove below $to: run 'sudo make uninstall'" >&2
	exit 1
}

# Another installation's service is not ours to stop.
if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ] &&
	[ "$(systemctl show --property FragmentPath --value dynahugd)" = "$unit" ]; then
	systemctl --quiet disable --now dynahugd
fi

if [ -e "$configuration" ] && cmp -s "$configuration" "$to/share/dynahugd/dynahugd.toml"; then
	rm "$configuration"
fi
rm -rf "$to/lib/dynahugd" "$to/share/dynahugd" "$to/share/doc/dynahugd"
rm -f "$to/bin/dynahugd" "$unit" "$to/lib/systemd/catalog/dynahugd.catalog" \
	"$to/share/man/man8/dynahugd.8" "$to/share/man/man5/dynahugd.toml.5" \
	"$to/share/bash-completion/completions/dynahugd" "$to/share/zsh/site-functions/_dynahugd"

if [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ]; then
	! command -v journalctl >/dev/null || journalctl --update-catalog
	test ! -d /run/systemd/system || systemctl daemon-reload
fi
# Where systemd makes a user for the service, the folders lie below private; the others are links.
for path in "$configuration" "$DESTDIR$SYSCONFDIR/systemd/system/dynahugd.service.d" \
	"$DESTDIR"/var/lib/private/dynahugd "$DESTDIR"/var/lib/dynahugd \
	"$DESTDIR"/var/log/private/dynahugd "$DESTDIR"/var/log/dynahugd; do
	if [ -e "$path" ] || [ -L "$path" ]; then
		echo "left: $path"
	fi
done
