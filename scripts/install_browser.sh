#!/bin/sh
# Installs headless Chromium for env=miniwob unless it is there. Usage: install_browser.sh [path of the browser]
set -eu
browser=${1:-/usr/bin/chromium-headless-shell}
package=chromium-headless-shell

if [ -x "$browser" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "no browser at $browser: install $package (Debian: sudo apt-get install $package), or pass BROWSER=<path>" >&2
    exit 0
fi
echo "installing $package"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null
apt-get install -y -qq --no-install-recommends "$package" </dev/null >/dev/null
