# shellcheck shell=bash
# Clock speed of the node's CPUs, and how deeply they sleep between requests.
#
# Idle states are limited per CPU through power/pm_qos_resume_latency_us. Refused: /dev/cpu_dma_latency,
# which holds for all CPUs and only while some process keeps it open.

title "clock speed and idle states"

# The limit in µs that some process holds on /dev/cpu_dma_latency, a 32-bit number.
held_limit() { od -An -t d4 -N 4 "$ROOT/dev/cpu_dma_latency" 2>/dev/null | tr -d ' '; }

# Idle states of a CPU as NAME:LATENCY, the shallowest first.
idle_states() {
    local state=0
    while exists "/sys/devices/system/cpu/cpu$1/cpuidle/state$state"; do
        local path=/sys/devices/system/cpu/cpu$1/cpuidle/state$state
        printf '%s:%s ' "$(value_of "$path/name")" "$(value_of "$path/latency")"
        state=$((state + 1))
    done
}

first=${CPUS%% *}
governor=/sys/devices/system/cpu/cpu$first/cpufreq
if exists "$governor/scaling_governor"; then
    found "CPU $first: driver $(value_of "$governor/scaling_driver"), governors: $(value_of "$governor/scaling_available_governors")"
    because "a core that polls little looks idle to the governor, which then slows it down" \
        "requests after a pause are answered at full speed; costs power"
    for cpu in $CPUS; do
        path=/sys/devices/system/cpu/cpu$cpu/cpufreq
        if [[ " $(value_of "$path/scaling_available_governors") " == *" performance "* ]]; then
            want "$path/scaling_governor" performance
        else
            skip "$path/scaling_governor: the governor performance is not available"
        fi
    done
else
    skip "clock speed: not adjustable on this host (a virtual machine?)"
fi

limit=$(held_limit)
# The kernel reports 2000000000 µs if no process holds a limit.
if [ -n "$limit" ] && [ "$limit" -lt 2000000000 ]; then
    found "a process limits all CPUs to idle states of at most $limit µs (/dev/cpu_dma_latency)"
fi
states=$(idle_states "$first")
deepest=${states% } deepest=${deepest##*:}
if [ -z "$states" ]; then
    skip "idle states: this host has none"
elif [[ $deepest =~ ^[0-9]+$ ]] && [ "$deepest" -le "$OPT_RESUME_US" ]; then
    found "CPU $first: idle states (wake-up in µs): ${states% }; none is deeper than $OPT_RESUME_US µs"
else
    found "CPU $first: idle states (wake-up in µs): ${states% }"
    because "a request to a sleeping core first waits until it wakes up; the kernel's table for Skylake servers lists 133 µs for C6 and 10 for C1E" \
        "these CPUs do not enter idle states with an exit latency above $OPT_RESUME_US µs; costs power, and turbo headroom of other cores"
    for cpu in $CPUS; do
        want "/sys/devices/system/cpu/cpu$cpu/power/pm_qos_resume_latency_us" "$OPT_RESUME_US"
    done
fi
