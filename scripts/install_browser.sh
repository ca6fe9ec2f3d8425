#!/bin/sh
# Installs headless Chromium for env=miniwob unless it is there; where it cannot, says how and ends with status 0: the
# tests that need a browser skip. Usage: install_browser.sh [path of the browser]
set -eu
browser=${1:-/usr/bin/chromium-headless-shell}
package=chromium-headless-shell

if [ -x "$browser" ]; then
    exit 0
fi

hint() {
    echo "no browser at $browser: $1" >&2
    echo "Any Chromium will do: env.args.browser_path=<path> for a run; for the tests, which skip without, link it there." >&2
    exit 0
}

command -v apt-get >/dev/null || hint "install $package or another headless Chromium"
[ "$(id -u)" = 0 ] || hint "install it as root: sudo apt-get install $package (Debian)"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null || hint "apt-get update failed"
# Ubuntu has Chromium as a snap only, which starts in no container.
apt-cache show "$package" >/dev/null 2>&1 || hint "this distribution has no package $package"
echo "installing $package"
apt-get install -y -qq --no-install-recommends "$package" </dev/null >/dev/null || hint "apt-get install $package failed"
[ -x "$browser" ] || hint "$package is installed elsewhere: $(command -v "$package" || echo unknown)"
