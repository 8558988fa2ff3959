#!/bin/sh
# Installs the program and what belongs to it below $DESTDIR$PREFIX, and a configuration, if there is
# none, in $DESTDIR$SYSCONFDIR. Started by 'make install', which has compiled the probe.
set -eu
umask 022
cd "$(dirname "$0")/.."
: "${PREFIX:=/usr/local}" "${SYSCONFDIR:=/etc}" "${DESTDIR:=}" "${PYTHON:=/usr/bin/python3}"

fail() {
	echo "dynahugd: $1" >&2
	exit 1
}
for folder in "$PREFIX" "$SYSCONFDIR"; do
	case $folder in
	*[!A-Za-z0-9/._+-]*) fail "$folder: PREFIX and SYSCONFDIR may hold letters, digits and /._+- only" ;;
	/*) ;;
	*) fail "$folder: PREFIX and SYSCONFDIR have to begin with /" ;;
	esac
done

to=$DESTDIR$PREFIX
library=$PREFIX/lib/dynahugd
share=$to/share/dynahugd
documents=$to/share/doc/dynahugd
{ mkdir -p "$to/lib" && test -w "$to/lib"; } 2>/dev/null ||
	fail "cannot write below $to: run 'sudo make install', or name another PREFIX or DESTDIR"

# The program is put together beside its place and moved there when it is whole, so a failure leaves
# the one that was there before, and no path of this build gets into it.
work=$(mktemp -d)
stage=$(mktemp -d "$to/lib/.dynahugd.XXXXXX")
trap 'rm -rf "$work" "$stage"' EXIT
trap 'exit 130' HUP INT TERM
chmod 755 "$stage"

echo "installing the program into $to/lib/dynahugd"
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE bpf dynahugd "$work/source"
"$PYTHON" -m venv "$work/tools"
"$PYTHON" -m venv --system-site-packages --without-pip "$stage"
pip="$work/tools/bin/pip --quiet --disable-pip-version-check"
$pip install --no-compile shtab
$pip wheel --no-deps --wheel-dir "$work" "$work/source"
# Of the system's packages only those that the package index has not (bcc, systemd) are used: what
# root installs for others does not get into a privileged daemon.
$pip --python "$stage/bin/python3" install --no-compile --ignore-installed "$work"/dynahugd-*.whl
find "$stage/bin" -type f -delete
sed -i '/^command = /d' "$stage/pyvenv.cfg"
# Compiled for where it will be. Some packages carry files that are no Python of this version.
"$stage/bin/python3" -m compileall -q -j 0 -s "$stage" -p "$library" "$stage/lib" || true

generate() {
	"$stage/bin/python3" -E -B -m "$@"
}
# Texts name the default prefix.
prefixed() {
	sed "s,/usr/local,$PREFIX,g"
}
put() {
	mkdir -p "$(dirname "$1")"
	cat > "$1"
}

put "$work/dynahugd" <<END
#!/bin/sh
# Isolated: neither the working directory nor PYTHON* variables get into a privileged program.
exec $library/bin/python3 -I -m dynahugd "\$@"
END
generate install.manual 8 | prefixed | put "$to/share/man/man8/dynahugd.8"
generate install.manual 5 | prefixed | put "$to/share/man/man5/dynahugd.toml.5"
generate dynahugd.outputs.messages | put "$to/lib/systemd/catalog/dynahugd.catalog"
PYTHONPATH=$(echo "$work"/tools/lib/python*/site-packages)
export PYTHONPATH
for shell in bash zsh; do
	"$stage/bin/python3" -B -m install.completion $shell > "$work/completion.$shell"
done
unset PYTHONPATH
put "$to/share/bash-completion/completions/dynahugd" < "$work/completion.bash"
put "$to/share/zsh/site-functions/_dynahugd" < "$work/completion.zsh"

prefixed < systemd/dynahugd.service | put "$to/lib/systemd/system/dynahugd.service"
for file in systemd/drop-ins/*.conf; do
	prefixed < "$file" | put "$share/drop-ins/$(basename "$file")"
done
for file in monitoring/*; do
	case $file in
	*.test.yml) ;;
	*) test ! -f "$file" || put "$share/$file" < "$file" ;;
	esac
done
for file in README.md CHANGELOG.md LICENSE docs/*.md docs/*.svg docs/runbooks/*.md; do
	test ! -f "$file" || put "$documents/$file" < "$file"
done

# A configuration that nobody has changed is replaced, one that somebody has is not.
configuration=$DESTDIR$SYSCONFDIR/dynahugd.toml
generate install.sample > "$work/dynahugd.toml"
if [ ! -e "$configuration" ] || cmp -s "$configuration" "$share/dynahugd.toml"; then
	put "$configuration" < "$work/dynahugd.toml"
else
	echo "left as it is: $configuration; every key of this version is in $PREFIX/share/dynahugd/dynahugd.toml"
fi
put "$share/dynahugd.toml" < "$work/dynahugd.toml"

rm -rf "$to/lib/dynahugd"
mv "$stage" "$to/lib/dynahugd"
put "$to/bin/dynahugd" < "$work/dynahugd"
chmod 755 "$to/bin/dynahugd"

if [ -n "$DESTDIR" ] || [ "$(id -u)" != 0 ]; then
	exit 0
fi
! command -v journalctl >/dev/null || journalctl --update-catalog
unit=dynahugd
case $PREFIX in
/usr | /usr/local) ;;
*) unit=$PREFIX/lib/systemd/system/dynahugd.service ;; # systemd does not look there by itself
esac
test ! -d /run/systemd/system || systemctl daemon-reload
if [ -d /run/systemd/system ] && systemctl --quiet is-active dynahugd; then
	echo "installed; the old one still runs: sudo systemctl restart dynahugd"
else
	echo "installed; look at 'sudo $PREFIX/bin/dynahugd doctor', then: sudo systemctl enable --now $unit"
fi
