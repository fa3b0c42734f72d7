# shellcheck shell=bash
# Whether the kernel polls the NIC before it waits for an interrupt. Off by default, and unchanged
# unless requested: it trades CPU for latency, and the node itself polls already (--busy-poll).

title "busy polling of the NIC"

found "a core polls its own rings before it sleeps (ringlane --busy-poll, 50 µs), which saves the wake-up; the kernel can poll the NIC in addition"
if [ -z "$OPT_BUSY_POLL" ]; then
    for name in busy_read busy_poll; do
        if now=$(value_of /proc/sys/net/core/$name); then
            found "net.core.$name = $now µs"
        else
            skip "net.core.$name: not in this kernel"
        fi
    done
    found "unchanged; --busy-poll 50 sets both. The kernel's documentation suggests 50 µs for several sockets, 100 for several hundred"
else
    because "requested with --busy-poll: a read that finds nothing polls the NIC's queue before it gives up" \
        "on NICs whose drivers support it, lower latency for few connections; more CPU for many. Measure before and after"
    want /proc/sys/net/core/busy_read "$OPT_BUSY_POLL"
    want /proc/sys/net/core/busy_poll "$OPT_BUSY_POLL"
    advise "this affects only sockets opened from now on: restart the node"
fi
