//! Plain counters of one shard. They add up across cores, and nothing here is shared.

use ringlane_types::counters;

counters! {
    /// Events of a shard since startup or since `stats reset`. Names and counting rules are
    /// memcached's: `cmd_get` counts keys, not requests.
    pub struct Counters {
        /// Keys read by get, gets and mg.
        cmd_get,
        /// Store attempts that were given memory.
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
        /// Items evicted before their deadline.
        evictions,
        /// Evicted items that were never read.
        evicted_unfetched,
        /// Expired items that were never read.
        expired_unfetched,
        /// Expired items whose memory was reclaimed, by the TTL wheel or on access.
        reclaimed,
        /// Slab pages that changed their class.
        slabs_moved,
        /// Items evicted because their index chain was full.
        chain_evictions,
    }
}
