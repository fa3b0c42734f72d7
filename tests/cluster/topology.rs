//! What HELLO tells of a cluster is enough to ask each key at its owner.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use ringlane::protocol::compact::client::{Frame, ResponseFrame};
use ringlane::protocol::compact::{NodeState, Opcode, Status, Topology};
use ringlane::ring::{Ring, RingHash, RingNode, RingParameters};

use crate::nodes::{Cluster, Node, wait_for};

/// Sends one frame; the value of its answer.
fn ask(stream: &mut TcpStream, frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).expect("the node takes bytes");
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some((response, _)) = ResponseFrame::decode(&input).expect("a response") {
            assert_eq!(response.status, Status::Ok);
            return response.value.to_vec();
        }
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "the node closed the connection");
        input.extend_from_slice(&buffer[..count]);
    }
}

fn hello(node: &Node) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.address()).expect("the node takes clients");
    ask(&mut stream, &Frame::new(Opcode::Hello, 1))
}

/// Whether `node` tells of all its nodes where they are.
fn tells_all(node: &Node, count: usize) -> bool {
    let list = hello(node);
    let topology = Topology::from_bytes(&list).expect("a list of tags");
    topology.nodes.len() == count && topology.nodes.iter().all(|node| node.port > 0)
}

#[test]
fn every_key_asked_at_the_owner_that_hello_names_is_asked_once() {
    let Some(mut cluster) = Cluster::form(3, &["--vnodes", "40"]) else { return };
    for node in cluster.up() {
        wait_for("HELLO to name all nodes", || tells_all(node, 3));
    }
    let lists: Vec<Vec<u8>> = cluster.up().map(hello).collect();
    let told: Vec<_> = lists.iter().map(|l| Topology::from_bytes(l).expect("tags")).collect();
    for (topology, node) in told.iter().zip(&cluster.nodes) {
        assert_eq!(topology.this_node, node.id);
        assert_eq!((topology.epoch, &topology.nodes), (told[0].epoch, &told[0].nodes));
    }
    let ring = told[0].ring.expect("a cluster has a ring");
    assert_eq!((ring.points_per_weight, ring.replicas, ring.hash), (40, 1, "md5"));
    let parameters = RingParameters { hash: RingHash::Md5, points_per_weight: 40, replicas: 1 };
    let nodes = &told[0].nodes;
    let members = nodes.iter().map(|node| RingNode { id: node.id.into(), weight: 1 });
    let ring = Ring::new(0, parameters, members).expect("a ring of three");
    let mut streams: Vec<TcpStream> = nodes
        .iter()
        .map(|node| {
            let address = SocketAddr::new(node.ip.expect("an address"), node.port);
            TcpStream::connect(address).expect("the node takes clients")
        })
        .collect();
    let before: Vec<u64> = cluster.up().map(|node| node.figure("forwarded")).collect();
    for number in 0..300u32 {
        let key = format!("key-{number}").into_bytes();
        let owner = usize::from(ring.owner(ring.point_of(&key)).0);
        ask(&mut streams[owner], &Frame::set(&key, b"value", number));
        assert_eq!(ask(&mut streams[owner], &Frame::get(&key, number)), b"value");
    }
    let after: Vec<u64> = cluster.up().map(|node| node.figure("forwarded")).collect();
    assert_eq!(before, after, "requests were forwarded");

    // Who is dead is said to be, and keeps its points until its seat is taken.
    let dead = cluster.nodes[2].id.clone();
    cluster.nodes[2].kill();
    wait_for("HELLO to call the killed node dead", || {
        let list = hello(&cluster.nodes[0]);
        let topology = Topology::from_bytes(&list).expect("a list of tags");
        let node = topology.nodes.iter().find(|node| node.id == dead).expect("it has points");
        node.state == NodeState::Dead
    });
}
