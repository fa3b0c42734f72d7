# shellcheck shell=bash
# Limits of connections waiting for their handshake, and waiting to be accepted.

title "connections waiting to be accepted"

# A counter of /proc/net/netstat by its name; the file has a line of names above one of numbers.
counter() {
    NAME=$1 awk '$1 == "TcpExt:" && !seen { for (i = 2; i <= NF; i++) name[i] = $i; seen = 1; next }
        $1 == "TcpExt:" { for (i = 2; i <= NF; i++) if (name[i] == ENVIRON["NAME"]) print $i }' \
        "$ROOT/proc/net/netstat" 2>/dev/null
}

overflows=$(counter ListenOverflows)
found "${overflows:-unknown} connections found the queue full since boot"
because "the kernel caps a listener's backlog at somaxconn; a client beyond it retries after a second" \
    "a connection storm, as after a restart, is accepted instead of delayed"
want_at_least /proc/sys/net/core/somaxconn "$OPT_BACKLOG"
want_at_least /proc/sys/net/ipv4/tcp_max_syn_backlog "$OPT_BACKLOG"
advise "the node requests 1024 by default: start it with ringlane --backlog $OPT_BACKLOG"
