# shellcheck shell=bash
# Reads the host. Every path goes through $ROOT, so that tests can simulate a host with files.

# The value in a file of /proc or /sys on one line with single spaces; of a choice such as
# `always [madvise] never` the selected one. Fails if the file cannot be read.
value_of() {
    local text
    text=$(tr -s '\n\t ' ' ' 2>/dev/null <"$ROOT$1") 2>/dev/null || return 1
    text=${text# }
    text=${text% }
    if [[ $text =~ \[([^]]*)\] ]]; then text=${BASH_REMATCH[1]}; fi
    printf '%s' "$text"
}

exists() { [ -e "$ROOT$1" ]; }

# `2-4,8` as `2 3 4 8`.
expand_cpus() {
    local part cpus=()
    for part in ${1//,/ }; do
        local cpu=${part%-*} last=${part#*-}
        while [ "$cpu" -le "$last" ]; do
            cpus+=("$cpu")
            cpu=$((cpu + 1))
        done
    done
    printf '%s' "${cpus[*]-}"
}

# `2 3 4 8` as `2-4,8`.
collapse_cpus() {
    local cpu first='' last='' text=''
    for cpu in $1 end; do
        if [ -n "$last" ] && [ "$cpu" = $((last + 1)) ]; then
            last=$cpu
            continue
        fi
        if [ -n "$last" ]; then
            text+=,$first
            [ "$first" = "$last" ] || text+=-$last
        fi
        first=$cpu last=$cpu
        [ "$cpu" != end ] || break
    done
    printf '%s' "${text#,}"
}

# `0 33` as `2,00000001`: a kernel mask, 32 CPUs to a group.
mask_of() {
    local cpu groups=() group=0 last=0 text=''
    for cpu in $1; do
        group=$((cpu / 32))
        groups[group]=$((${groups[group]:-0} | 1 << cpu % 32))
        [ "$group" -le "$last" ] || last=$group
    done
    for ((group = last; group >= 0; group--)); do
        text+=$(printf ',%08x' "${groups[group]:-0}")
    done
    bare_mask "${text#,}"
}

# A mask without the leading zeros that the kernel prints.
bare_mask() {
    local text=$1
    while [[ $text == [0,]?* ]]; do text=${text#?}; done
    printf '%s' "$text"
}

count_of() {
    # shellcheck disable=SC2086 # The list is to be split.
    set -- $1
    printf '%s' $#
}

online_cpus() { value_of /sys/devices/system/cpu/online || printf 0; }

# NICs that carry client traffic: the named ones, or all physical ones that are up.
nics() {
    local path name found=()
    if [ -n "$OPT_NICS" ]; then
        printf '%s' "$OPT_NICS"
        return
    fi
    for path in "$ROOT"/sys/class/net/*; do
        name=${path##*/}
        exists "/sys/class/net/$name/device" || continue
        [ "$(value_of "/sys/class/net/$name/operstate")" != down ] || continue
        found+=("$name")
    done
    printf '%s' "${found[*]-}"
}

# The queues of a NIC in one direction (rx or tx) as paths, in the order of their numbers.
queues() {
    local number=0
    while exists "/sys/class/net/$1/queues/$2-$number"; do
        printf '%s\n' "/sys/class/net/$1/queues/$2-$number"
        number=$((number + 1))
    done
}

# Ids of the processes with this name.
processes() {
    local path name pids=()
    for path in "$ROOT"/proc/[0-9]*; do
        # No pipe here: there may be thousands of processes, and they may end at any time.
        { read -r name <"$path/comm"; } 2>/dev/null || continue
        [ "$name" != "$1" ] || pids+=("${path##*/}")
    done
    printf '%s' "${pids[*]-}"
}
