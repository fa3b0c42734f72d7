//! Bytes to requests: 64 pipelined requests of every protocol, and one multiget of 50 keys.

use std::hint::black_box;

use bumpalo::Bump;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringlane::protocol::{Context, Decoder, Limits, Step};

mod support;

use support::{NOW, SECRET, WRITES, key, pipelines};

const DEPTH: usize = 64;

/// Decodes all of `input`; returns how many requests it held.
fn decode(input: &[u8], limits: &Limits, scratch: &mut Bump) -> usize {
    scratch.reset();
    let context = Context { limits, now: NOW, hash_secret: &SECRET, scratch };
    let mut decoder = Decoder::default();
    let (mut at, mut requests) = (0, 0);
    while at < input.len() {
        match decoder.next(&input[at..], &context) {
            Step::Request { consumed, request, .. } => {
                black_box(request.hash);
                at += consumed;
                requests += 1;
            }
            step => panic!("no request: {step:?}"),
        }
    }
    requests
}

fn parsers(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut scratch = Bump::new();
    let mut group = criterion.benchmark_group("parse");
    for (name, write) in WRITES {
        let input = pipelines(write, DEPTH, 1_000_000, 1).remove(0);
        assert_eq!(decode(&input, &limits, &mut scratch), DEPTH);
        group.throughput(Throughput::Elements(DEPTH as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| decode(black_box(&input), &limits, &mut scratch));
        });
    }
    let keys: Vec<String> = (0..50).map(|n| String::from_utf8_lossy(&key(n)).into()).collect();
    let input = format!("get {}\r\n", keys.join(" ")).into_bytes();
    assert_eq!(decode(&input, &limits, &mut scratch), 50);
    group.throughput(Throughput::Elements(50));
    group.bench_function("text multiget of 50", |bencher| {
        bencher.iter(|| decode(black_box(&input), &limits, &mut scratch));
    });
    group.finish();
}

criterion_group!(benches, parsers);
criterion_main!(benches);
