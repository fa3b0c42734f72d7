use std::net::SocketAddr;

use futures_lite::future::zip;
use glommio::LocalExecutorBuilder;
use glommio::net::TcpListener;

use super::*;
use crate::cluster::frame::AuthKey;
use crate::cluster::identity::{Boot, NodeKey};
use crate::cluster::link::{ClientEndpoint, Peer};
use crate::cluster::membership::Terms;
use crate::cluster::quorum::Replication;
use crate::ring::RingParameters;

fn party(id: &str, cluster: &str, key: Option<&[u8]>) -> Arc<Party> {
    Arc::new(Party {
        id: id.into(),
        boot: Boot(1),
        core_count: 2,
        hash_seed: 7,
        frame_bytes_max: 1 << 20,
        clients: ClientEndpoint::default(),
        terms: Terms::new(cluster, RingParameters::default(), Replication::default()),
        key: key.map(AuthKey::from_file_contents),
        listed: None,
    })
}

/// The ids of the node that dials and the one that is dialled.
fn ids() -> [&'static str; 2] {
    if NodeKey::of("a") < NodeKey::of("b") { ["a", "b"] } else { ["b", "a"] }
}

fn on_executor<T: Send + 'static>(test: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    LocalExecutorBuilder::default()
        .io_memory(64 << 10)
        .spawn(move || async move { test().await })
        .expect("an executor")
        .join()
        .expect("the test does not panic")
}

fn a_dial(address: SocketAddr) -> Dial {
    let peer = Peer { node: NodeKey::of(ids()[1]), core: 1 };
    Dial { link: LinkId { core: 0, peer }, address, serial: 1 }
}

/// Both sides' outcomes over a real connection.
async fn meet(
    dialler: Arc<Party>,
    acceptor: Arc<Party>,
) -> (Result<Established, EstablishError>, Result<Established, EstablishError>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    zip(dial(dialler, &a_dial(address), 0), async {
        answer(acceptor, listener.accept().await.expect("a connection"), |_| true).await
    })
    .await
}

#[test]
fn two_nodes_with_the_same_key_meet_and_their_connection_carries_on() {
    on_executor(async || {
        for key in [None, Some(&b"secret"[..])] {
            let [a, b] = ids().map(|id| party(id, "test", key));
            let (dialled, answered) = meet(a, b).await;
            let ((ours, session), (theirs, _)) = (dialled.expect("met"), answered.expect("met"));
            assert_eq!(&*session.id, ids()[1]);
            let (mut ours, mut theirs) = (glommio_fd::stream(ours), glommio_fd::stream(theirs));
            ours.write_all(b"frames").await.expect("written");
            let mut read = [0; 6];
            theirs.read_exact(&mut read).await.expect("read");
            assert_eq!(&read, b"frames", "nothing of them was swallowed");
        }
    });
}

#[test]
fn nodes_that_do_not_belong_together_part_and_both_know_why() {
    on_executor(async || {
        let [a, b] = ids();
        let (one, two) = (Some(&b"one"[..]), Some(&b"two"[..]));
        for (dialler, acceptor, reason) in [
            (party(a, "test", one), party(b, "test", two), HandshakeRefusal::Key),
            (party(a, "test", None), party(b, "test", two), HandshakeRefusal::Key),
            (party(a, "test", one), party(b, "test", None), HandshakeRefusal::Key),
            (party(a, "elsewhere", one), party(b, "test", one), HandshakeRefusal::Cluster),
        ] {
            let (dialled, answered) = meet(dialler, acceptor).await;
            let (dialled, answered) = (dialled.unwrap_err(), answered.unwrap_err());
            assert!(
                matches!(&answered, EstablishError::Handshake(HandshakeError::Refused(r)) if *r == reason),
                "{answered:?}"
            );
            assert!(
                matches!(&dialled, EstablishError::Handshake(HandshakeError::RefusedBy(r)) if *r == reason),
                "{dialled:?}"
            );
            assert!(dialled.to_string().contains(reason.sentence()));
        }
    });
}

#[test]
fn a_recorded_dialler_gets_nowhere() {
    on_executor(async || {
        let [a, b] = ids().map(|id| party(id, "test", Some(b"secret")));
        // Record what a dialler says, by standing between the two.
        let front = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let back = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let fronted = front.local_addr().expect("its address");
        let behind = back.local_addr().expect("its address");
        let between = async {
            let mut dialler = front.accept().await.expect("a connection");
            let mut acceptor = TcpStream::connect(behind).await.expect("connected");
            let mut recorded = Vec::new();
            for from_dialler in [true, false, true] {
                let (from, to) = match from_dialler {
                    true => (&mut dialler, &mut acceptor),
                    false => (&mut acceptor, &mut dialler),
                };
                let mut bytes = vec![0; 1024];
                let read = from.read(&mut bytes).await.expect("a message");
                to.write_all(&bytes[..read]).await.expect("passed on");
                if from_dialler {
                    recorded.push(bytes[..read].to_vec());
                }
            }
            recorded
        };
        let accepting = async {
            let stream = back.accept().await.expect("a connection");
            answer(b.clone(), stream, |_| true).await
        };
        let to_front = a_dial(fronted);
        let dialling = zip(dial(a.clone(), &to_front, 0), between);
        let ((dialled, recorded), answered) = zip(dialling, accepting).await;
        assert!(dialled.is_ok() && answered.is_ok(), "the recorded handshake was a good one");

        let replaying = async {
            let mut stream = TcpStream::connect(behind).await.expect("connected");
            for message in &recorded {
                stream.write_all(message).await.expect("written");
            }
            let mut answers = Vec::new();
            let _ = stream.read_to_end(&mut answers).await;
        };
        let accepting = async {
            let stream = back.accept().await.expect("a connection");
            answer(b.clone(), stream, |_| true).await
        };
        let ((), answered) = zip(replaying, accepting).await;
        assert!(
            matches!(
                &answered,
                Err(EstablishError::Handshake(HandshakeError::Refused(HandshakeRefusal::Replay)))
            ),
            "{answered:?}"
        );
    });
}

#[test]
fn a_silent_or_foreign_peer_is_given_up() {
    on_executor(async || {
        let [a, b] = ids().map(|id| party(id, "test", None));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let silent = zip(dial(a, &a_dial(address), 0), listener.accept()).await;
        assert!(matches!(silent.0, Err(EstablishError::TimedOut)), "{silent:?}");
        let foreign = async {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        };
        let answering = async {
            let stream = listener.accept().await.expect("a connection");
            answer(b, stream, |_| true).await
        };
        let ((), answered) = zip(foreign, answering).await;
        assert!(
            matches!(answered, Err(EstablishError::Handshake(HandshakeError::Malformed))),
            "{answered:?}"
        );
    });
}
