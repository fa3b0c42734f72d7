//! What was acknowledged is there and unchanged, whatever the server does with its memory meanwhile.

mod live;

use std::time::Duration;

use live::Server;

/// The value of key `number`: no two alike, and about what a page of the kernel holds.
fn value_of(number: usize) -> Vec<u8> {
    format!("{number:06}|").into_bytes().repeat(570)
}

/// Memory made ready for a shard goes back when the shard has not grown for a second. Here it grows
/// in the very turn that gives back: while the process stands still, its timer and stores come
/// together.
#[test]
fn values_stored_while_memory_is_given_back_are_there() {
    const ROUNDS: usize = 6;
    const IN_ROUND: usize = 600;
    let mut server = Server::start(&["-m", "256", "-t", "1"]);
    let mut clients: Vec<_> = (0..6).map(|_| server.connect()).collect();
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(700));
        server.signal("STOP");
        for (number, sixth) in (round * IN_ROUND..).step_by(IN_ROUND / 6).zip(&mut clients) {
            // As much as the sockets hold while nobody reads.
            let sockets = socket2::SockRef::from(sixth.socket());
            sockets.set_send_buffer_size(1 << 20).expect("a larger buffer");
            let mut stores = Vec::new();
            for number in number..number + IN_ROUND / 6 {
                let value = value_of(number);
                stores.extend(format!("set key{number} 0 0 {} noreply\r\n", value.len()).bytes());
                stores.extend(&value);
                stores.extend(b"\r\n");
            }
            stores.extend(b"mn\r\n");
            sixth.send(&stores);
        }
        std::thread::sleep(Duration::from_millis(600));
        server.signal("CONT");
        clients.iter_mut().for_each(|client| assert_eq!(client.line(), "MN"));
    }
    server.assert_alive();
    let reader = &mut clients[0];
    let lost: Vec<usize> = (0..ROUNDS * IN_ROUND)
        .filter(|&number| reader.fetch(&format!("key{number}")) != Some(value_of(number)))
        .collect();
    assert_eq!(server.stat("evictions"), 0);
    assert!(lost.is_empty(), "{} values are gone or changed, the first {}", lost.len(), lost[0]);
}
