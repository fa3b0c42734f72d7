# shellcheck shell=bash
# Whether the node may use io_uring. An administrator who disabled it had a reason: it is enabled
# only for the group named with --uring-group.

title "permission to use io_uring"

RELEASE=$(value_of /proc/sys/kernel/osrelease)
if [[ $RELEASE =~ ^([0-9]+)\.([0-9]+) ]]; then
    if [ "${BASH_REMATCH[1]}" -lt 6 ] || [ "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}" = 6.0 ]; then
        advise "kernel $RELEASE is too old: Ringlane needs 6.1 or newer"
    else
        found "kernel $RELEASE"
    fi
fi

# The number of a group given by name or number.
group_number() {
    if [[ $1 =~ ^[0-9]+$ ]]; then
        printf '%s' "$1"
    else
        NAME=$1 awk -F: '$1 == ENVIRON["NAME"] { print $3; exit }' "$ROOT/etc/group" 2>/dev/null
    fi
}

DISABLED=/proc/sys/kernel/io_uring_disabled
ALLOWED=/proc/sys/kernel/io_uring_group
why="without io_uring the node does not start"
if ! now=$(value_of $DISABLED); then
    found "this kernel cannot disable io_uring (6.6 or newer can): nothing forbids it"
elif [ "$now" = 0 ]; then
    found "io_uring is allowed for everyone"
elif [ "$OPT_URING_GROUP" = all ]; then
    because "$why; requested with --uring-group all" "every program on this host may use it"
    want $DISABLED 0
elif [ -n "$OPT_URING_GROUP" ]; then
    group=$(group_number "$OPT_URING_GROUP")
    if [ -z "$group" ]; then
        skip "there is no group $OPT_URING_GROUP: groupadd --system $OPT_URING_GROUP"
    else
        because "$why; requested with --uring-group" "members of group $group may use it, others still may not"
        # The group first, so that no one gains access between the two writes.
        want $ALLOWED "$group"
        want $DISABLED 1
    fi
else
    [ "$now" = 2 ] && who="no one" || who="only privileged processes and group $(value_of $ALLOWED)"
    found "io_uring is allowed for $who (kernel.io_uring_disabled = $now)"
    advise "$why: --uring-group GROUP allows it for one group (SupplementaryGroups= in the unit), --uring-group all for everyone"
fi
