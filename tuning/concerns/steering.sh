# shellcheck shell=bash
# Which CPU handles a packet after the interrupt (RPS, RFS) and which queue sends an answer (XPS).
# RPS and RFS do in software what a NIC with a queue per core does in hardware: they are wanted only
# if the NIC has fewer queues than the node has cores.

# Entries of the table that records which CPU reads a connection: a size that the kernel's own
# documentation (networking/scaling) found to work well on a moderately loaded server.
FLOWS=32768
# Packets that may be queued for one CPU: four times the kernel's default.
WAITING=4000

title "packets to cores (RPS, RFS) and cores to transmit queues (XPS)"

# The largest power of two up to a number: the kernel would round up, past the table.
power_of_two() {
    local power=1
    while [ $((power * 2)) -le "$1" ]; do power=$((power * 2)); done
    printf '%s' $power
}

# Packets dropped since boot because too many were queued for a CPU.
dropped() {
    local total=0 second
    while read -r _ second _; do
        total=$((total + 16#$second))
    done 2>/dev/null <"$ROOT/proc/net/softnet_stat"
    printf '%s' $total
}

cores=$(count_of "$CPUS")
nics=$(nics)
[ -n "$nics" ] || skip "no physical NIC is up; name one with --nic"

for nic in $nics; do
    receive=$(queues "$nic" rx | grep -c .)
    transmit=$(queues "$nic" tx | grep -c .)
    found "$nic: receive queues: $receive, transmit queues: $transmit, cores: $cores"
    if [ "$cores" -lt 2 ]; then
        found "one core: nothing to spread"
    elif [ "$receive" -ge "$cores" ]; then
        found "a receive queue per core: RPS and RFS would only add a hop and stay unchanged"
    elif [ "$receive" -gt 0 ]; then
        because "fewer receive queues than cores: without RPS a few CPUs handle all packets" \
            "receiving spreads over all cores, each connection where it is read; costs one inter-processor interrupt per moved batch"
        for queue in $(queues "$nic" rx); do
            want_mask "$queue/rps_cpus" "$(mask_of "$CPUS")"
        done
        want_at_least /proc/sys/net/core/rps_sock_flow_entries $FLOWS
        for queue in $(queues "$nic" rx); do
            want_at_least "$queue/rps_flow_cnt" "$(power_of_two $((FLOWS / receive)))"
        done
    fi

    if [ "$transmit" -gt 1 ]; then
        because "cores that send through one queue contend for its lock" \
            "a queue for each core, or shared by as few as possible"
        number=0
        for queue in $(queues "$nic" tx); do
            mine='' position=0
            for cpu in $CPUS; do
                [ $((position % transmit)) -ne $number ] || mine+="$cpu "
                position=$((position + 1))
            done
            # Queues beyond the number of cores stay unchanged: no core is left for them.
            [ -z "$mine" ] || want_mask "$queue/xps_cpus" "$(mask_of "$mine")"
            number=$((number + 1))
        done
    elif [ "$transmit" -eq 1 ]; then
        found "one transmit queue: XPS has no choice"
    fi
done

if [ "$(dropped)" -gt 0 ]; then
    because "$(dropped) packets were dropped since too many were queued for a CPU (/proc/net/softnet_stat)" \
        "bursts wait instead of being retransmitted"
    want_at_least /proc/sys/net/core/netdev_max_backlog $WAITING
else
    found "no packet was dropped between NIC and sockets for lack of room"
fi
