#!/bin/sh
# Runs in the container of a Jetson, as a user without rights: `serve` starts an SSH server, `check` asks whether it answers.
# PORT, KEYS (authorized keys) and STATE (host keys, kept) may be set.
set -eu
port="${PORT:-2222}"
keys="${KEYS:-/etc/vitrim/authorized_keys}"
state="${STATE:-$HOME/.vitrim-ssh}"

fail() {
    echo "vitrim-device: $1" >&2
    exit 2
}

check() {
    python3 - "$port" <<'PYTHON'
import socket
import sys

try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=3) as link:
        link.settimeout(3)
        banner = link.recv(64)
except OSError as error:
    sys.exit(f"vitrim-device: no SSH server on port {sys.argv[1]}: {error}")
if not banner.startswith(b"SSH-2.0-"):
    sys.exit(f"vitrim-device: no SSH server on port {sys.argv[1]}: it says {banner!r}")
PYTHON
}

serve() {
    [ -r "$keys" ] || fail "no authorized keys at '$keys'; mount them: -v \"\$HOME/.ssh/authorized_keys:$keys:ro\""
    server="$(command -v sshd || echo /usr/sbin/sshd)"
    [ -x "$server" ] || fail "no SSH server (sshd) is installed; apt-get install openssh-server"
    mkdir -p "$state"
    chmod 700 "$state"
    # Of the mounted file, which may belong to anybody, a copy that only this user can write. sshd need not look at the
    # folders above it (StrictModes): nobody else is in this container.
    cp "$keys" "$state/authorized_keys"
    chmod 600 "$state/authorized_keys"
    [ -f "$state/host_key" ] || ssh-keygen -q -t ed25519 -N '' -C vitrim-device -f "$state/host_key"
    cat >"$state/sshd_config" <<CONFIG
Port $port
HostKey $state/host_key
PidFile $state/sshd.pid
AuthorizedKeysFile $state/authorized_keys
StrictModes no
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
AllowTcpForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PrintMotd no
SetEnv PATH=$PATH
CONFIG
    echo "vitrim-device: host key $(ssh-keygen -l -f "$state/host_key.pub")"
    for module in numpy tensorrt; do
        python3 -c "import $module" 2>/dev/null || echo "vitrim-device: python3 cannot import $module; engines cannot be built here" >&2
    done
    exec "$server" -D -e -f "$state/sshd_config"
}

case "${1:-serve}" in
serve) serve ;;
check) check ;;
*) fail "unknown command '$1'; known: serve, check" ;;
esac
