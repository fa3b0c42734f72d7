# shellcheck shell=bash
# How many connections may wait: for their handshake, and for being accepted.

title "connections that wait to be accepted"

# A counter of /proc/net/netstat by its name; the file has a line of names above one of numbers.
counter() {
    NAME=$1 awk '$1 == "TcpExt:" && !seen { for (i = 2; i <= NF; i++) name[i] = $i; seen = 1; next }
        $1 == "TcpExt:" { for (i = 2; i <= NF; i++) if (name[i] == ENVIRON["NAME"]) print $i }' \
        "$ROOT/proc/net/netstat" 2>/dev/null
}

overflows=$(counter ListenOverflows)
found "${overflows:-unknown} connections found the queue full since the host started"
because "the kernel cuts a listener's backlog to somaxconn; a client beyond it waits a second and tries again" \
    "a storm of connections, as after a restart, is accepted instead of put off"
want_at_least /proc/sys/net/core/somaxconn "$OPT_BACKLOG"
want_at_least /proc/sys/net/ipv4/tcp_max_syn_backlog "$OPT_BACKLOG"
advise "the node asks for 1024 unless told otherwise: ringlane --backlog $OPT_BACKLOG; it reads this when it starts"
