# shellcheck shell=bash
# Memory near the cores. A shard's memory is first touched by the core that owns it, and so lies on
# that core's node of memory already: all that is wanted is that the kernel leaves it there.

title "memory near its core (NUMA)"

nodes=$(expand_cpus "$(value_of /sys/devices/system/node/online)")
if [ "$(count_of "$nodes")" -lt 2 ]; then
    found "one node of memory: every core is as near to it as any other"
else
    for node in $nodes; do
        list=$(value_of "/sys/devices/system/node/node$node/cpulist")
        mine=''
        for cpu in $CPUS; do
            [[ " $(expand_cpus "$list") " != *" $cpu "* ]] || mine+="$cpu "
        done
        found "node $node has CPUs $list; of the cores of Ringlane: $(collapse_cpus "$mine")"
    done
    for nic in $(nics); do
        near=$(value_of "/sys/class/net/$nic/device/numa_node") || continue
        [ "$near" -lt 0 ] || found "$nic is attached to node $near: cores there are nearest to it"
    done
    advise "cores of two nodes share no cache: one Ringlane per node of memory, each with --cpus and its own port, saves the way between them"
fi
because "balancing unmaps pages to see who touches them; a pinned core always finds its own, so every such fault is in vain" \
    "no stalls from hinting faults. GitLab traced a saturated Redis main thread to them (infrastructure issue 1889)"
want /proc/sys/kernel/numa_balancing 0
because "with zone_reclaim_mode a core frees pages of its node before it takes a page from another" \
    "no pauses for reclaim while there is memory elsewhere"
want /proc/sys/vm/zone_reclaim_mode 0
