//! One core's items: reads and writes within the CPU's cache and far beyond it, eviction, growth.
//!
//! `get` and `set` ask one key after the other; `engine get` takes the same keys as the server
//! does, in batches whose cache lines are asked for ahead.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringlane::request::Response;

mod support;

use support::{NOW, Node, Random, get_of, is_measuring, key, pipelines, set_of, text_get, value};

/// Requests per iteration.
const REQUESTS: usize = 64;

/// Numbers of items: about 1 MB with the index, and 400 MB.
fn item_counts() -> [(&'static str, u64); 2] {
    let beyond = if is_measuring() { 4_000_000 } else { 40_000 };
    [("in the CPU cache", 10_000), ("far beyond the CPU cache", beyond)]
}

fn memory_for(items: u64) -> u64 {
    (16 << 20) + items * 112
}

fn access(criterion: &mut Criterion) {
    for (place, items) in item_counts() {
        let mut node = Node::filled(memory_for(items), items);
        assert_eq!(node.engine.shard.counters().evictions, 0, "all items fit");
        let mut random = Random(3);
        let mut group = criterion.benchmark_group(format!("shard, {place}"));
        group.throughput(Throughput::Elements(REQUESTS as u64));
        group.bench_function("get", |bencher| {
            bencher.iter(|| {
                for _ in 0..REQUESTS {
                    let number = random.below(items);
                    let key = key(number);
                    let response = node.engine.shard.execute(&get_of(&key), NOW);
                    let Response::Hit(hit) = response else { panic!("{number}: {response:?}") };
                    assert!(hit.value.parts().next().is_some_and(|v| v == value(number)));
                }
            });
        });
        group.bench_function("set", |bencher| {
            bencher.iter(|| {
                for _ in 0..REQUESTS {
                    let number = random.below(items);
                    let (key, value) = (key(number), value(number));
                    let response = node.engine.shard.execute(&set_of(&key, &value), NOW);
                    assert!(matches!(response, Response::Stored { .. }));
                }
            });
        });
        let inputs = pipelines(text_get, REQUESTS, items, 4096);
        let mut turn = 0;
        let answer_bytes = node.feed(&inputs[0]).len();
        group.bench_function("engine get", |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % inputs.len();
                assert_eq!(node.feed(black_box(&inputs[turn])).len(), answer_bytes);
            });
        });
        group.finish();
    }
}

fn eviction(criterion: &mut Criterion) {
    let items = if is_measuring() { 1_000_000 } else { 40_000 };
    let mut node = Node::filled(items * 40, items);
    let mut number = items;
    let before = node.engine.shard.counters().evictions;
    assert!(before > 0, "the memory is full");
    let mut group = criterion.benchmark_group("shard, full");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    group.bench_function("set of a new key", |bencher| {
        bencher.iter(|| {
            for _ in 0..REQUESTS {
                let (key, value) = (key(number), value(number));
                let response = node.engine.shard.execute(&set_of(&key, &value), NOW);
                assert!(matches!(response, Response::Stored { .. }));
                number += 1;
            }
            node.engine.shard.maintain(NOW, 64);
        });
    });
    group.finish();
    assert!(node.engine.shard.counters().evictions > before);
}

fn growth(criterion: &mut Criterion) {
    let items = if is_measuring() { 100_000 } else { 1_000 };
    let mut group = criterion.benchmark_group("shard, growing");
    group.throughput(Throughput::Elements(items));
    group.sample_size(10);
    group.bench_function("set of a new key, from empty to 100,000", |bencher| {
        let empty = || Node::new(memory_for(items));
        let fill = |mut node: Node| {
            for number in 0..items {
                let (key, value) = (key(number), value(number));
                node.engine.shard.execute(&set_of(&key, &value), NOW);
                node.engine.shard.maintain(NOW, 64);
            }
            assert_eq!(node.engine.shard.counters().evictions, 0);
            node
        };
        bencher.iter_batched(empty, fill, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, access, eviction, growth);
criterion_main!(benches);
