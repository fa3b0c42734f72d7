# shellcheck shell=bash
# Which core gets a new connection. Only reports; there is nothing to set on the host.

title "listeners of the cores (SO_REUSEPORT)"

# Sockets that listen on a port. /proc/net/tcp has ports in hexadecimal, 0A is LISTEN.
listeners() {
    cat "$ROOT/proc/net/tcp" "$ROOT/proc/net/tcp6" 2>/dev/null |
        P=$(printf ':%04X' "$1") awk '$4 == "0A" && substr($2, length($2) - 4) == ENVIRON["P"]' |
        grep -c .
}

found "each core has its own listener on port $OPT_PORT; the kernel spreads new connections over these listeners by a hash"
found "the core that accepts a connection hands it to the core with the fewest, so an uneven hash does no harm: nothing to steer on the host"
if count=$(listeners "$OPT_PORT") && [ "$count" -gt 0 ]; then
    found "now listening on port $OPT_PORT: $count sockets (one per core and address)"
else
    found "nothing is listening on port $OPT_PORT"
fi
advise "a client that knows the cores can skip the hop between them: ringlane --shard-ports BASE"
