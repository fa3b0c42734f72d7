# shellcheck shell=bash
# Memory local to the cores. A shard's memory is first touched by the core that owns it, and so is
# already on that core's NUMA node: the kernel only has to leave it there.

title "memory local to its core (NUMA)"

nodes=$(expand_cpus "$(value_of /sys/devices/system/node/online)")
if [ "$(count_of "$nodes")" -lt 2 ]; then
    found "one NUMA node: all memory is local to every core"
else
    for node in $nodes; do
        list=$(value_of "/sys/devices/system/node/node$node/cpulist")
        mine=''
        for cpu in $CPUS; do
            [[ " $(expand_cpus "$list") " != *" $cpu "* ]] || mine+="$cpu "
        done
        found "node $node has CPUs $list; of Ringlane's: $(collapse_cpus "$mine")"
    done
    for nic in $(nics); do
        near=$(value_of "/sys/class/net/$nic/device/numa_node") || continue
        [ "$near" -lt 0 ] || found "$nic is attached to node $near: cores there are closest to it"
    done
    advise "cores of two NUMA nodes share no cache: one Ringlane per NUMA node, each with its own --cpus and port, avoids traffic between them"
fi
because "balancing unmaps pages to see which CPU touches them; a pinned core only finds its own, so every such fault is wasted" \
    "no stalls from hinting faults. GitLab traced a saturated Redis main thread to them (infrastructure issue 1889)"
want /proc/sys/kernel/numa_balancing 0
because "with zone_reclaim_mode a core reclaims pages of its node before it uses a page of another" \
    "no pauses for reclaim while another node has free memory"
want /proc/sys/vm/zone_reclaim_mode 0
