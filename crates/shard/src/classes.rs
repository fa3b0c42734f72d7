//! Slab classes: the chunk sizes, and the class of an item.
//!
//! Steps of 8 bytes up to 256, where a step is a large share of the item, then 16 sizes per
//! doubling up to 1 KiB and 8 above, so that at most an eighth of a chunk is wasted. A shard with
//! few pages has 4 per doubling: each class in use occupies at least one page. Every size is
//! stretched to fill its page evenly, and sizes that then coincide are merged.

/// Maximum number of classes; class numbers fit a byte with room for special pages.
pub(super) const CLASSES_MAX: usize = 192;
/// Sizes up to this are found by table, larger ones by binary search.
const TABLE_BYTES: usize = 2048;

/// The chunk sizes of one shard, ascending.
pub(super) struct ClassTable {
    sizes: Vec<u32>,
    /// Class by size in units of 8 bytes, rounded up.
    small: [u8; TABLE_BYTES / 8 + 1],
}

impl ClassTable {
    /// Classes for pages of `page_bytes`, a power of two; `coarse` for shards of few pages. The
    /// largest chunk is half a page.
    pub(super) fn new(page_bytes: u32, coarse: bool) -> Self {
        let mut sizes: Vec<u32> = Vec::new();
        let mut size = 24;
        while size <= page_bytes / 2 {
            let stretched = (page_bytes / (page_bytes / size)) & !7;
            let stretched = if size < 512 { size } else { stretched };
            if sizes.last() != Some(&stretched) {
                sizes.push(stretched);
            }
            let doubling = 1 << (31 - size.leading_zeros());
            size += match size {
                _ if coarse => (doubling / 4).max(8),
                0..256 => 8,
                256..1024 => doubling / 16,
                _ => doubling / 8,
            };
        }
        assert!(sizes.len() <= CLASSES_MAX, "{} slab classes", sizes.len());
        let mut small = [0; TABLE_BYTES / 8 + 1];
        for (units, class) in small.iter_mut().enumerate() {
            *class = sizes.partition_point(|&size| (size as usize) < units * 8) as u8;
        }
        Self { sizes, small }
    }

    /// Number of classes.
    pub(super) fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Chunk size of `class` in bytes.
    #[inline]
    pub(super) fn chunk_bytes(&self, class: u8) -> usize {
        self.sizes[class as usize] as usize
    }

    /// Largest chunk: larger items are chained.
    pub(super) fn chunk_bytes_max(&self) -> usize {
        *self.sizes.last().expect("there is at least one class") as usize
    }

    /// The class of the smallest chunk that holds `bytes`, at most [`ClassTable::chunk_bytes_max`].
    #[inline]
    pub(super) fn class_for(&self, bytes: usize) -> u8 {
        if bytes <= TABLE_BYTES {
            self.small[bytes.div_ceil(8)]
        } else {
            self.sizes.partition_point(|&size| (size as usize) < bytes) as u8
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_chunk_that_holds_it() {
        for (page, coarse) in [(64 << 10, true), (1 << 20, false), (256 << 10, false)] {
            let table = ClassTable::new(page, coarse);
            assert_eq!(table.chunk_bytes_max(), page as usize / 2);
            for bytes in 17..=table.chunk_bytes_max() {
                let class = table.class_for(bytes);
                assert!(table.chunk_bytes(class) >= bytes);
                assert!(class == 0 || table.chunk_bytes(class - 1) < bytes);
            }
        }
    }

    #[test]
    fn chunks_are_multiples_of_eight_and_lose_at_most_a_seventh_below_a_sixteenth_of_a_page() {
        let table = ClassTable::new(1 << 20, false);
        let mut previous = 24;
        for class in 0..table.count() {
            let bytes = table.chunk_bytes(class as u8);
            assert_eq!(bytes % 8, 0);
            if bytes <= 1 << 16 && bytes > 64 {
                assert!(bytes - previous <= previous / 7 + 8, "{previous} {bytes}");
            }
            previous = bytes;
        }
    }

    #[test]
    fn a_chunk_for_550_bytes_and_a_header_with_ttl_is_608() {
        let table = ClassTable::new(1 << 20, false);
        assert_eq!(table.chunk_bytes(table.class_for(50 + 500 + 28)), 608);
        assert_eq!(table.chunk_bytes(table.class_for(50 + 500 + 16)), 576);
    }
}
