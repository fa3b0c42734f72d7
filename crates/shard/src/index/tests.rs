//! The index as a set, what it costs, and chains at their limit.

use super::*;
use proptest::prelude::*;
use ringlane_types::hash::HashSecret;

const PAGE: usize = 64 << 10;

/// Keys are numbers; the item position is the number plus one.
fn hash(key: u32) -> KeyHash {
    KeyHash::of(&key.to_le_bytes(), &HashSecret::of_seed(3))
}

fn hash_of(_: &[u8], item: ItemRef) -> KeyHash {
    hash(item.0 - 1)
}

fn find(index: &Index, memory: &[u8], key: u32) -> Option<(Entry, ItemRef)> {
    index.find(memory, hash(key), |item| item.0 == key + 1)
}

fn grow(index: &mut Index, memory: &mut [u8], pages: &mut Vec<usize>) {
    while index.wants_split() {
        if index.needs_segment() {
            index.add_segment(pages.pop().unwrap());
        }
        index.split(memory, hash_of, |_, _| ());
    }
}

proptest! {
    #[test]
    fn behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0u32..600), 1..2000), grows in any::<bool>()) {
        let mut memory = vec![0xcc; 8 * PAGE];
        memory[..PAGE].fill(0);
        let mut index = Index::new(0, PAGE);
        index.add_overflow_page(&mut memory, PAGE);
        let mut pages = vec![2 * PAGE];
        let mut reference = std::collections::HashSet::new();
        for (add, key) in steps {
            let found = find(&index, &memory, key);
            prop_assert_eq!(found.is_some(), reference.contains(&key));
            match (add, found) {
                (true, None) => {
                    index.insert(&mut memory, hash(key), ItemRef(key + 1));
                    reference.insert(key);
                }
                (false, Some((entry, _))) => {
                    index.remove(&mut memory, hash(key), entry);
                    reference.remove(&key);
                }
                _ => {}
            }
            if grows {
                grow(&mut index, &mut memory, &mut pages);
            }
        }
        index.check_invariants(&memory, |item| hash_of(&[], item), |_| ());
        for key in 0..600 {
            prop_assert_eq!(find(&index, &memory, key).is_some(), reference.contains(&key));
        }
    }
}

#[test]
fn a_full_chain_takes_no_item_until_one_of_it_goes() {
    let mut memory = vec![0; 4 * PAGE];
    let mut index = Index::new(0, PAGE);
    index.add_overflow_page(&mut memory, PAGE);
    let (same, other) = (KeyHash::from_bits(5), KeyHash::from_bits(6));
    let most = CHAIN_BUCKETS_MAX * ENTRIES as u32;
    for item in 1..=most {
        assert!(!index.is_chain_full(&memory, same));
        index.insert(&mut memory, same, ItemRef(item));
    }
    assert!(index.is_chain_full(&memory, same) && !index.has_room() && index.has_overflow());
    assert!(!index.is_chain_full(&memory, other));
    index.insert(&mut memory, other, ItemRef(1000));
    let hash_of = |item: ItemRef| if item.0 == 1000 { other } else { same };
    index.check_invariants(&memory, hash_of, |_| ());

    let entry = index.entry_of(&memory, same, ItemRef(3)).unwrap();
    index.remove(&mut memory, same, entry);
    assert!(!index.is_chain_full(&memory, same));
    index.insert(&mut memory, same, ItemRef(most + 1));
    assert!(index.is_chain_full(&memory, same));
    for item in (1..=most + 1).filter(|&item| item != 3) {
        let entry = index.entry_of(&memory, same, ItemRef(item)).unwrap();
        index.remove(&mut memory, same, entry);
        index.check_invariants(&memory, hash_of, |_| ());
    }
    assert!(index.has_room());
}

#[test]
fn an_item_costs_at_most_ten_and_a_half_bytes_at_any_size() {
    let mut memory = vec![0; 64 * PAGE];
    let mut pages: Vec<usize> = (1..64).map(|page| page * PAGE).rev().collect();
    let mut index = Index::new(0, PAGE);
    for key in 0..200_000 {
        if !index.has_room() {
            index.add_overflow_page(&mut memory, pages.pop().unwrap());
        }
        index.insert(&mut memory, hash(key), ItemRef(key + 1));
        grow(&mut index, &mut memory, &mut pages);
        if key > 1000 && key % 1000 == 0 {
            let bytes = (index.bucket_count() as u64 + index.overflow_used()) * 64;
            assert!(bytes * 2 <= 21 * index.len(), "{} B at {key}", bytes as f64 / key as f64);
        }
    }
    index.check_invariants(&memory, |item| hash_of(&[], item), |_| ());
}
