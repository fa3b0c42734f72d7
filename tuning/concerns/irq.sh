# shellcheck shell=bash
# Which CPU handles the NIC's interrupts. Queue n of every NIC interrupts the n-th CPU of the node, so
# that packets of one queue are always handled in the same cache, next to the core that answers them.

title "interrupts and queues of the NIC"

# The interrupts of a NIC, one number per line.
interrupts() {
    local device=/sys/class/net/$1/device directory
    directory=$device/msi_irqs
    # A virtio device has its interrupts from the PCI device above it.
    if ! exists "$directory" && [[ $(readlink "$ROOT$device/subsystem") == */virtio ]]; then
        directory=$device/../msi_irqs
    fi
    exists "$directory" || return 0
    (cd "$ROOT$directory" && printf '%s\n' *) | sort -n
}

# The queue that an interrupt serves, read from its name: `virtio2-input.3`, `eth0-TxRx-3`,
# `mlx5_comp3@pci:0000:01:00.0`. Fails for those that serve none, such as `virtio2-config`.
queue_of() {
    local name=${1%%@*}
    [ "$name" != "$2" ] || { printf 0 && return; }
    case $name in *async* | *config* | *control* | *ctrl* | *mgm* | *cmd* | *admin* | *misc* | *event*) return 1 ;; esac
    [[ $name =~ ([0-9]+)$ ]] || return 1
    printf '%s' $((10#${BASH_REMATCH[1]}))
}

read -r -a cpus <<<"$IRQ_CPUS"
nics=$(nics)
[ -n "$nics" ] || skip "no physical NIC is up; name one with --nic"
if [ -n "$nics" ] && [ -n "$(processes irqbalance)" ]; then
    advise "irqbalance runs and will move the interrupts again: systemctl disable --now irqbalance"
fi

for nic in $nics; do
    receive=$(queues "$nic" rx | grep -c .)
    found "$nic: receive queues: $receive, transmit queues: $(queues "$nic" tx | grep -c .), CPUs for their interrupts: ${#cpus[@]}"
    if [ "$receive" -lt ${#cpus[@]} ]; then
        advise "give $nic a queue per core if its hardware has them (ethtool -l $nic):" \
            "ethtool -L $nic combined ${#cpus[@]}. Not done automatically: some drivers drop the link"
    fi
    because "an interrupt that moves between CPUs drags its packets' cache lines along" \
        "more stable latency; the CPUs share the receive load as spread by the NIC's hash"
    steered=''
    for irq in $(interrupts "$nic"); do
        queue=$(queue_of "$(value_of "/sys/kernel/irq/$irq/actions")" "$nic") || continue
        want "/proc/irq/$irq/smp_affinity_list" "${cpus[queue % ${#cpus[@]}]}"
        steered=1
    done
    [ -n "$steered" ] || skip "$nic: its interrupts cannot be attributed to queues"
done
