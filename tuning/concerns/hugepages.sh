# shellcheck shell=bash
# Huge pages for the shards: one TLB entry covers 2 MiB instead of 4 KiB.
#
# Wants the mode `madvise` (or `always`, if it is already set): memory consists of huge pages where a
# program requests them. Refused: hugetlbfs, whose pages are reserved at boot, unavailable to all
# others, and not used by Ringlane; and setting `always`, which affects every program on the host.

title "huge pages"

THP=/sys/kernel/mm/transparent_hugepage
if ! exists $THP/enabled; then
    skip "transparent huge pages: not in this kernel"
else
    found "transparent huge pages: $(value_of $THP/enabled), defragmentation at page faults: $(value_of $THP/defrag)"
    because "items are scattered: with small pages nearly every lookup in a large cache misses the TLB" \
        "fewer CPU cycles per request once the items exceed what the TLB covers; no difference below"
    if [ "$(value_of $THP/enabled)" = always ]; then
        found "mode always works for the node too and stays unchanged"
    else
        want $THP/enabled madvise
    fi
    because "with any other mode a page fault may stall to compact memory; with defer the kernel does it in the background" \
        "no pauses while the cache fills; some of its memory gets huge pages later"
    [ "$(value_of $THP/defrag)" = never ] || want $THP/defrag defer
    for pid in $(processes ringlane); do
        huge=$(awk '$1 == "AnonHugePages:" { kib = $2 } END { print kib + 0 }' "$ROOT/proc/$pid/smaps_rollup" 2>/dev/null)
        found "ringlane (process $pid) has ${huge:-unknown} KiB in huge pages"
    done
    found "the node requests huge pages for its items itself; there is nothing to set"
fi
reserved=$(awk '$1 == "HugePages_Total:" { print $2 }' "$ROOT/proc/meminfo" 2>/dev/null)
if [ "${reserved:-0}" -gt 0 ]; then
    advise "$reserved huge pages are reserved (vm.nr_hugepages); Ringlane does not use them: set 0 unless another program does"
else
    found "no huge pages are reserved, and none need to be"
fi
