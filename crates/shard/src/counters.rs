//! Plain counters of one shard. They add up across cores, and nothing here is shared.

use ringlane_types::counters;

counters! {
    /// What has happened in a shard since it started or since `stats reset`. Names and counting
    /// rules are memcached's: `cmd_get` counts keys, not requests.
    pub struct Counters {
        /// Keys read by get, gets and mg.
        cmd_get,
        /// Stores attempted with memory.
        cmd_set,
        /// Keys read by touch, gat and mg with T.
        cmd_touch,
        /// Items inspected by `me`.
        cmd_meta,
        /// Reads that found an item.
        get_hits,
        /// Reads that found none.
        get_misses,
        /// Misses that found an expired item.
        get_expired,
        /// Misses that found a flushed item.
        get_flushed,
        /// Deletes of an item that existed.
        delete_hits,
        /// Deletes of a missing item.
        delete_misses,
        /// Increments that found an item.
        incr_hits,
        /// Increments that found none.
        incr_misses,
        /// Decrements that found an item.
        decr_hits,
        /// Decrements that found none.
        decr_misses,
        /// Compare-and-swaps that stored.
        cas_hits,
        /// Compare-and-swaps on a missing item.
        cas_misses,
        /// Compare-and-swaps whose token differed.
        cas_badval,
        /// Touches that found an item.
        touch_hits,
        /// Touches that found none.
        touch_misses,
        /// Stores refused as larger than the item size limit.
        store_too_large,
        /// Stores refused for lack of memory.
        store_no_memory,
        /// Items ever stored.
        total_items,
        /// Items removed for room before their deadline.
        evictions,
        /// Evicted items that nobody had read.
        evicted_unfetched,
        /// Expired items that nobody had read.
        expired_unfetched,
        /// Expired items whose room was taken back, by the wheel or on the way.
        reclaimed,
        /// Slab pages that changed their class.
        slabs_moved,
        /// Items removed because their chain in the index was full.
        chain_evictions,
    }
}
