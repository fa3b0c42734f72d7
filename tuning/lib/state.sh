# shellcheck shell=bash
# Records what apply changed, so that revert can restore it.
#
# A text file: one line `boot|ID`, then for each changed file `set|CONCERN|PATH|BEFORE|NOW`. BEFORE
# is the value from before the first apply, however often apply is repeated; NOW is what the last
# one set. No setting survives a reboot, so a state of an earlier boot is void.

state_fail() {
    printf 'tune: %s\n' "$1" >&2
    exit 3
}

boot_id() { value_of /proc/sys/kernel/random/boot_id || printf unknown; }

state_is_of_this_boot() { [ "$(sed -n '1s/^boot|//p' "$STATE_FILE")" = "$(boot_id)" ]; }

# Prepares the state for writing, or ends the run before anything is changed.
state_open() {
    mkdir -p "$(dirname "$STATE_FILE")" 2>/dev/null ||
        state_fail "cannot create the directory of $STATE_FILE: nothing was changed; run as root or give --state"
    if [ ! -e "$STATE_FILE" ]; then
        state_write ''
        return
    fi
    [ -r "$STATE_FILE" ] || state_fail "cannot read $STATE_FILE: nothing was changed"
    if state_is_of_this_boot; then
        # Verifies that it can be written.
        state_write "$(state_lines)"
    else
        printf 'The host has rebooted since the last apply, which undid it: starting afresh.\n'
        state_write ''
    fi
}

# Removes a state that records nothing.
state_close() {
    if [ -z "$(state_lines)" ]; then rm -f "$STATE_FILE"; fi
}

state_lines() { sed -n '/^set|/p' "$STATE_FILE"; }

# Replaces all lines, through a second file, so that a state is never half written.
state_write() {
    if ! (umask 077 && printf 'boot|%s\n' "$(boot_id)" >"$STATE_FILE.new" &&
        printf '%s\n' "$1" >>"$STATE_FILE.new" &&
        mv -f "$STATE_FILE.new" "$STATE_FILE") 2>/dev/null; then
        state_fail "cannot write $STATE_FILE: nothing was changed; run as root or give --state"
    fi
}

# The field of the line of a path: 4 for the value before, 5 for the value now.
state_field() { state_lines | P=$1 F=$2 awk -F'|' '$3 == ENVIRON["P"] { print $ENVIRON["F"]; exit }'; }

state_has() { [ -n "$(state_field "$1" 3)" ]; }

state_without() { state_lines | P=$1 awk -F'|' '$3 != ENVIRON["P"]'; }

# Records that PATH held BEFORE and now holds NOW. An earlier BEFORE stays: it is the original.
state_put() {
    local before=$3 rest
    if state_has "$2"; then before=$(state_field "$2" 4); fi
    rest=$(state_without "$2")
    state_write "${rest:+$rest$'\n'}set|$1|$2|$before|$4"
}

state_drop() { state_write "$(state_without "$1")"; }

# Restores what the given concerns changed, the last change first.
state_revert() {
    local concern path before now current reason left='' would=''
    if [ ! -e "$STATE_FILE" ]; then
        printf 'Nothing to revert: there is no %s.\n' "$STATE_FILE"
        return 0
    fi
    [ -r "$STATE_FILE" ] || state_fail "cannot read $STATE_FILE: nothing was changed"
    if ! state_is_of_this_boot; then
        printf 'Nothing to revert: the host has rebooted since, which undid all changes.\n'
        [ -z "$WRITES" ] || rm -f "$STATE_FILE"
        return 0
    fi
    while IFS='|' read -r _ concern path before now; do
        [[ " $* " == *" $concern "* ]] || continue
        # The state is data: apply never wrote a line that names anything but a kernel setting.
        if [[ ! $path =~ ^/(proc|sys)/ || $path == *..* ]]; then
            skip "$path: not a kernel setting"
            left=1
            continue
        fi
        if ! current=$(value_of "$path"); then
            printf 'gone     %s: no longer there\n' "$path"
            [ -z "$WRITES" ] || state_drop "$path"
            continue
        fi
        if [ "$current" = "$before" ]; then
            printf 'fine     %s = %s\n' "$path" "$before"
            [ -z "$WRITES" ] || state_drop "$path"
            continue
        fi
        if [ "$current" != "$now" ] && [ -z "$FORCE" ]; then
            skip "$path: someone else has changed it from $now to $current; --force restores $before"
            left=1
            continue
        fi
        if [ -z "$WRITES" ]; then
            printf 'restore  %s: %s -> %s\n' "$path" "$current" "$before"
            would=1
            continue
        fi
        if ! reason=$(write_value "$path" "$before"); then
            skip "$path: $reason"
            left=1
        elif current=$(value_of "$path") && [ "$current" != "$before" ]; then
            skip "$path: the kernel keeps $current instead of $before"
            left=1
        else
            printf 'restored %s: %s -> %s\n' "$path" "$now" "$before"
            state_drop "$path"
        fi
    done < <(state_lines | awk '{ line[NR] = $0 } END { for (i = NR; i > 0; i--) print line[i] }')
    [ -z "$WRITES" ] || state_close
    [ -z "$left$would" ]
}
