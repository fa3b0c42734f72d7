//! Core to core: requests travel to the owner of their keys and answers back, on one thread, so
//! that it shows the cost of encoding, rings and execution and not that of cache lines in flight.

use std::fs::File;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringlane::request::{Request, Response};
use ringlane::server::mesh::{self, Doorbell, Mesh, ReplyTo};
use ringlane::server::net_ring::Token;

mod support;

use support::{NOW, Node, Random, get_of, key, set_of, value};

const ITEMS: u64 = 10_000;

/// Two cores; the bells are never rung, since nobody says that it sleeps.
fn pair() -> [Mesh; 2] {
    let bell = || Doorbell::new(File::open("/dev/null").expect("/dev/null opens").into());
    let meshes = mesh::build(2, 256 << 10, [bell(), bell()].into());
    meshes.try_into().ok().expect("two cores have two meshes")
}

/// Hands `requests` to core 1 and takes its answers; returns how many were right.
fn round_trip<'b>(
    [asking, owning]: &mut [Mesh; 2],
    node: &mut Node,
    requests: impl Iterator<Item = Request<'b>>,
    is_right: impl Fn(&Response<'_>) -> bool,
) -> usize {
    let token = Token { index: 1, generation: 1 };
    for (sequence, request) in requests.enumerate() {
        asking.request(1, ReplyTo { token, sequence: sequence as u32 }, &request);
    }
    asking.publish();
    owning.serve(&mut node.engine, NOW);
    owning.publish();
    let mut right = 0;
    asking.answers(|to, response| right += usize::from(to.token == token && is_right(response)));
    right
}

fn mesh(criterion: &mut Criterion) {
    let mut node = Node::filled(16 << 20, ITEMS);
    let mut meshes = pair();
    let mut random = Random(9);
    let mut group = criterion.benchmark_group("mesh");
    for batch in [1, 24, 256] {
        group.throughput(Throughput::Elements(batch as u64));
        let mut pick =
            || (0..batch).map(|_| random.below(ITEMS)).map(|n| (key(n), value(n))).collect();
        group.bench_function(format!("get, {batch} requests there and back"), |bencher| {
            bencher.iter(|| {
                let picked: Vec<_> = pick();
                let requests = picked.iter().map(|(key, _)| get_of(key));
                let is_hit = |response: &Response<'_>| matches!(response, Response::Hit(_));
                assert_eq!(round_trip(&mut meshes, &mut node, requests, is_hit), batch);
            });
        });
        group.bench_function(format!("set, {batch} requests there and back"), |bencher| {
            bencher.iter(|| {
                let picked: Vec<_> = pick();
                let requests = picked.iter().map(|(key, value)| set_of(key, value));
                let is_stored =
                    |response: &Response<'_>| matches!(response, Response::Stored { .. });
                assert_eq!(round_trip(&mut meshes, &mut node, requests, is_stored), batch);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, mesh);
criterion_main!(benches);
