#!/bin/sh
# Installs what some tests need from the system, where this machine lets us; the tests that lack it skip and say so.
set -u
missing=""
command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing="$missing chromium"
command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null 2>&1 || missing="$missing openssh-server openssh-client"
[ -z "$missing" ] && exit 0
command -v apt-get >/dev/null 2>&1 || { echo "not installed, no apt-get here:$missing (tests that need it skip)"; exit 0; }
[ "$(id -u)" = 0 ] || { echo "not installed, needs root: apt-get install$missing (tests that need it skip)"; exit 0; }
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing; } >/dev/null 2>&1 \
  && echo "installed:$missing" || echo "apt-get could not install:$missing (tests that need it skip)"
exit 0
