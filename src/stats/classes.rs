//! `stats items` and `stats slabs`: the slab classes of all shards, added up by number.

use super::{Emit, Snapshot, emit};
use crate::shard::ClassStats;

/// `stats items`: classes that hold items.
pub fn items(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    for class in merged(snapshot).iter().filter(|class| class.number > 0) {
        let number = class.class;
        let mut figure = |name: &str, value: u64| {
            emit(format_args!("items:{number}:{name}"), format_args!("{value}"));
        };
        figure("number", class.number);
        figure("number_hot", 0);
        figure("number_warm", 0);
        figure("number_cold", class.number);
        figure("age_hot", 0);
        figure("age_warm", 0);
        figure("age", class.age);
        figure("mem_requested", class.mem_requested);
        figure("evicted", class.evicted);
        figure("evicted_nonzero", class.evicted_nonzero);
        figure("evicted_time", class.evicted_time);
        figure("outofmemory", class.outofmemory);
        figure("tailrepairs", 0);
        figure("reclaimed", class.reclaimed);
        figure("expired_unfetched", class.expired_unfetched);
        figure("evicted_unfetched", class.evicted_unfetched);
        for name in [
            "evicted_active",
            "crawler_reclaimed",
            "crawler_items_checked",
            "lrutail_reflocked",
            "moves_to_cold",
            "moves_to_warm",
            "moves_within_lru",
            "direct_reclaims",
        ] {
            figure(name, 0);
        }
    }
}

/// `stats slabs`: classes that have pages, and two totals.
pub fn slabs(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    let classes = merged(snapshot);
    for class in classes.iter().filter(|class| class.total_pages > 0) {
        let number = class.class;
        let mut figure = |name: &str, value: u64| {
            emit(format_args!("{number}:{name}"), format_args!("{value}"));
        };
        figure("chunk_size", class.chunk_size);
        figure("chunks_per_page", class.chunks_per_page);
        figure("total_pages", class.total_pages);
        figure("total_chunks", class.total_chunks);
        figure("used_chunks", class.used_chunks);
        figure("free_chunks", class.free_chunks);
        figure("free_chunks_end", 0);
        figure("get_hits", class.get_hits);
        figure("cmd_set", class.cmd_set);
        figure("delete_hits", class.delete_hits);
        figure("incr_hits", class.incr_hits);
        figure("decr_hits", class.decr_hits);
        figure("cas_hits", class.cas_hits);
        figure("cas_badval", class.cas_badval);
        figure("touch_hits", class.touch_hits);
    }
    emit! { emit:
        active_slabs = classes.iter().filter(|class| class.total_pages > 0).count(),
        total_malloced = snapshot.sum(|core| core.gauges.slab_bytes),
    }
}

/// The classes of all cores, added up, in order of their numbers. Ages are the maximum over the
/// cores.
pub(super) fn merged(snapshot: &Snapshot<'_>) -> Vec<ClassStats> {
    let mut merged: Vec<ClassStats> = Vec::new();
    for class in snapshot.cores.iter().flat_map(|core| &core.classes) {
        match merged.binary_search_by_key(&class.class, |known| known.class) {
            Err(at) => merged.insert(at, class.clone()),
            Ok(at) => {
                let before = merged[at].clone();
                merged[at].add(class);
                merged[at] = ClassStats {
                    class: class.class,
                    chunk_size: class.chunk_size,
                    chunks_per_page: class.chunks_per_page,
                    age: before.age.max(class.age),
                    evicted_time: before.evicted_time.max(class.evicted_time),
                    ..merged[at].clone()
                };
            }
        }
    }
    merged
}
