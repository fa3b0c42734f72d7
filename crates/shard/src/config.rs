//! The configuration of a shard.

/// Which item is evicted when memory is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// The least recently used of its slab class.
    #[default]
    Lru,
    /// Nothing is evicted; writes that need memory are answered with out-of-memory errors.
    None,
    /// The one stored longest ago, used or not.
    Fifo,
    /// Any.
    Random,
    /// The one with the nearest deadline; those without one last.
    Ttl,
    /// The least frequently used, with old uses counting less.
    Lfu,
    /// One not requested again soon after it was stored, else one not used recently (S3-FIFO).
    S3Fifo,
}

impl Eviction {
    /// Every policy that exists, with its name.
    pub const NAMES: [(&str, Eviction); 7] = [
        ("lru", Eviction::Lru),
        ("none", Eviction::None),
        ("fifo", Eviction::Fifo),
        ("random", Eviction::Random),
        ("ttl", Eviction::Ttl),
        ("lfu", Eviction::Lfu),
        ("s3fifo", Eviction::S3Fifo),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// Settings of one shard.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Memory for items and index together, in bytes. The shard never uses more.
    pub memory_bytes: u64,
    /// Size limit of one item as memcached counts it: key, value and about 50 bytes.
    pub item_bytes_max: u32,
    /// Which item is evicted when memory is full.
    pub eviction: Eviction,
}

impl ShardConfig {
    /// The smallest sensible shard: a few pages, so that tests meet every limit soon.
    pub fn tiny() -> Self {
        Self { memory_bytes: 1 << 20, item_bytes_max: 64 << 10, eviction: Eviction::Lru }
    }
}
