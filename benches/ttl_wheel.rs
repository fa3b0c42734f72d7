//! Deadlines: what they add to a write, what refreshing one costs, and how fast expired items go.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringlane::request::{Get, Operation, Request, Response, Store};
use ringlane::shard::Shard;
use ringlane::time::{Deadline, Instant};

mod support;

use support::{NOW, Node, Random, get_of, is_measuring, key, set_of, value};

/// Requests per iteration.
const REQUESTS: usize = 64;

fn items() -> u64 {
    if is_measuring() { 200_000 } else { 2_000 }
}

/// Deadlines that reach four levels of the wheel: 1 second to about 20 days.
fn deadline(random: &mut Random, now: Instant) -> Deadline {
    let magnitude = random.below(21) as u32;
    Deadline::at(now.after(Duration::from_secs(1 + random.below(1 << magnitude))))
}

fn set(shard: &mut Shard, number: u64, deadline: Deadline) {
    let (key, value) = (key(number), value(number));
    let store = Store { deadline, ..Store::set(&value) };
    let request = Request { operation: Operation::Store(store), ..set_of(&key, &value) };
    assert!(matches!(shard.execute(&request, NOW), Response::Stored { .. }));
}

fn filled(deadline: impl Fn(&mut Random) -> Deadline) -> Node {
    let mut node = Node::new((16 << 20) + items() * 128);
    let mut random = Random(5);
    (0..items()).for_each(|number| set(&mut node.engine.shard, number, deadline(&mut random)));
    node
}

fn live(criterion: &mut Criterion) {
    let mut node = filled(|random| deadline(random, NOW));
    let mut random = Random(6);
    let mut group = criterion.benchmark_group("TTL wheel");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    group.bench_function("set with another deadline", |bencher| {
        bencher.iter(|| {
            for _ in 0..REQUESTS {
                let deadline = deadline(&mut random, NOW);
                set(&mut node.engine.shard, random.below(items()), deadline);
            }
        });
    });
    group.bench_function("touch", |bencher| {
        bencher.iter(|| {
            for _ in 0..REQUESTS {
                let key = key(random.below(items()));
                let touch = Some(deadline(&mut random, NOW));
                let operation = Operation::Get(Get { touch, ..Get::default() });
                let request = Request { operation, ..get_of(&key) };
                assert!(matches!(node.engine.shard.execute(&request, NOW), Response::Hit(_)));
            }
        });
    });
    group.finish();
}

fn expiry(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("TTL wheel, expiry");
    group.throughput(Throughput::Elements(items()));
    group.sample_size(10);
    // Within a minute, so that items also move down a level.
    let within_a_minute =
        || filled(|random| Deadline::at(NOW.after(Duration::from_millis(random.below(60_000)))));
    let expire = |mut node: Node| {
        let mut now = NOW;
        for _ in 0..62 * 4 {
            now = now.after(Duration::from_millis(250));
            while node.engine.shard.maintain(now, 64) {}
        }
        assert_eq!(node.engine.shard.counters().reclaimed, items(), "all expired items are gone");
        node
    };
    group.bench_function("a minute's items, in turns of 64", |bencher| {
        bencher.iter_batched(within_a_minute, expire, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, live, expiry);
criterion_main!(benches);
