# shellcheck shell=bash
# CPUs reserved for the node. Decided at boot, so this can only report and advise.

title "CPUs reserved for the node"

isolated=$(value_of /sys/devices/system/cpu/isolated)
tickless=$(value_of /sys/devices/system/cpu/nohz_full)
offloaded=$(value_of /proc/cmdline | tr ' ' '\n' | sed -n 's/^rcu_nocbs=//p')
[ "$tickless" != "(null)" ] || tickless=''
found "isolated: ${isolated:-none}; without a timer tick (nohz_full): ${tickless:-none}; without RCU callbacks (rcu_nocbs): ${offloaded:-none}"

list=$(collapse_cpus "$CPUS")
if [ "$list" = "$(online_cpus)" ]; then
    skip "the node uses every CPU: one must remain for the kernel and other programs; name the node's with --cpus"
elif [ "$(expand_cpus "$isolated")" = "$CPUS" ] && [ "$(expand_cpus "$tickless")" = "$CPUS" ]; then
    found "CPUs $list are the node's alone"
    advise "only processes that request an isolated CPU run on it: CPUAffinity=$list in the unit, and ringlane --cpus $list"
else
    advise "add to the kernel's command line and reboot:" \
        "isolcpus=managed_irq,domain,$list nohz_full=$list rcu_nocbs=$list"
    advise "why: other programs, the scheduler's balancing, the timer tick and RCU callbacks interrupt a core at any time"
    advise "effect: more stable tail latency; the mean hardly changes, and these CPUs are lost to everything else"
    advise "then assign them to the node: CPUAffinity=$list in the unit, and ringlane --cpus $list"
fi
