//! The hash circle: placing a key, finding its owner and its replicas, building the circle anew.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringlane::ring::{Ring, RingHash, RingNode, RingParameters};

mod support;

use support::{is_measuring, key};

/// Keys per iteration.
const KEYS: u64 = 64;

fn nodes(count: usize) -> Vec<RingNode> {
    (0..count).map(|n| RingNode { id: format!("node-{n}").into(), weight: 1 }).collect()
}

fn ring(criterion: &mut Criterion) {
    let counts: &[usize] = if is_measuring() { &[10, 100] } else { &[10] };
    for (name, hash) in RingHash::NAMES {
        for &count in counts {
            let parameters = RingParameters { hash, replicas: 3, ..RingParameters::default() };
            let build = || Ring::new(1, parameters, nodes(count)).expect("a ring");
            let ring = build();
            let mut owned = vec![0u32; count];
            for number in 0..10_000 {
                owned[ring.owner(ring.point_of(&key(number))).0 as usize] += 1;
            }
            assert!(owned.iter().all(|&keys| keys > 0), "every node owns keys: {owned:?}");
            let mut group = criterion.benchmark_group(format!("ring, {name}, {count} nodes"));
            group.throughput(Throughput::Elements(KEYS));
            group.bench_function("owner of a key", |bencher| {
                bencher.iter(|| {
                    for number in 0..KEYS {
                        black_box(ring.owner(ring.point_of(&key(black_box(number)))));
                    }
                });
            });
            for together in [1, 2, 4, 8, 16] {
                let keys: Vec<_> = (0..KEYS).map(key).collect();
                let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                group.bench_function(format!("points of keys, {together} at a time"), |bencher| {
                    bencher.iter(|| {
                        for keys in keys.chunks(together) {
                            black_box(hash.points_of::<16>(black_box(keys)));
                        }
                    });
                });
            }
            group.bench_function("three replicas of a key", |bencher| {
                bencher.iter(|| {
                    for number in 0..KEYS {
                        let replicas = ring.replicas(ring.point_of(&key(black_box(number))));
                        assert_eq!(replicas.len(), 3);
                    }
                });
            });
            group.throughput(Throughput::Elements(ring.point_count() as u64));
            group.bench_function("build", |bencher| bencher.iter(build));
            group.finish();
        }
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
