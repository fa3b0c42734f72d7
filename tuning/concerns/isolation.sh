# shellcheck shell=bash
# CPUs that nothing else runs on. Decided when the host starts, so this can only look and advise.

title "CPUs kept free of everything else"

isolated=$(value_of /sys/devices/system/cpu/isolated)
tickless=$(value_of /sys/devices/system/cpu/nohz_full)
offloaded=$(value_of /proc/cmdline | tr ' ' '\n' | sed -n 's/^rcu_nocbs=//p')
[ "$tickless" != "(null)" ] || tickless=''
found "isolated: ${isolated:-none}; without a timer tick (nohz_full): ${tickless:-none}; without RCU callbacks (rcu_nocbs): ${offloaded:-none}"

list=$(collapse_cpus "$CPUS")
if [ "$list" = "$(online_cpus)" ]; then
    skip "the node has every CPU: one must stay for the kernel and the rest; name the node's with --cpus"
elif [ "$(expand_cpus "$isolated")" = "$CPUS" ] && [ "$(expand_cpus "$tickless")" = "$CPUS" ]; then
    found "CPUs $list are the node's alone"
    advise "an isolated CPU is used only by who asks for it: CPUAffinity=$list in the unit, and ringlane --cpus $list"
else
    advise "add to the kernel's command line and restart the host:" \
        "isolcpus=managed_irq,domain,$list nohz_full=$list rcu_nocbs=$list"
    advise "why: other programs, the scheduler's balancing, the timer tick and RCU callbacks interrupt a core at any time"
    advise "effect: a steadier tail of latency; the mean hardly moves, and these CPUs are lost to everything else"
    advise "then give them to the node: CPUAffinity=$list in the unit, and ringlane --cpus $list"
fi
