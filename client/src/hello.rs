//! Identifies a node with the compact protocol's HELLO, on a separate connection.

use std::io::{Read, Write};
use std::time::Duration;

use ringlane_protocol::compact::client::{Frame, ResponseFrame};
use ringlane_protocol::compact::{Opcode, Status};
use socket2::{Domain, Socket, Type};

use crate::address::Address;

/// A node's answer to HELLO, within `limit`.
pub fn hello(address: &Address, limit: Duration) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{address}: {error}");
    let domain = Domain::from(i32::from(address.socket().family()));
    let mut socket = Socket::new(domain, Type::STREAM, None).map_err(failed)?;
    match address.socket().is_unix() {
        true => socket.connect(address.socket()).map_err(failed)?,
        false => socket.connect_timeout(address.socket(), limit).map_err(failed)?,
    }
    socket.set_read_timeout(Some(limit)).map_err(failed)?;
    let mut request = Vec::new();
    Frame::new(Opcode::Hello, 1).encode(&mut request);
    socket.write_all(&request).map_err(failed)?;
    let unspoken = |input: &[u8]| {
        let words = shown(input);
        match input {
            [] => format!("{address} does not speak the binary protocol: no answer to HELLO"),
            _ => format!(
                "{address} does not speak the binary protocol: answered HELLO with \"{words}\""
            ),
        }
    };
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match ResponseFrame::decode(&input) {
            Ok(Some((response, _))) if response.status == Status::Ok => {
                return Ok(response.value.to_vec());
            }
            Ok(None) if input.first().is_none_or(|&byte| byte == Opcode::Hello as u8) => {}
            _ => return Err(unspoken(&input)),
        }
        match socket.read(&mut buffer) {
            Ok(count) if count > 0 => input.extend_from_slice(&buffer[..count]),
            _ => return Err(unspoken(&input)),
        }
    }
}

/// The beginning of an answer as one line of text.
fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 48;
    let cut = if bytes.len() > SHOWN_BYTES_MAX { "..." } else { "" };
    format!("{}{cut}", bytes[..bytes.len().min(SHOWN_BYTES_MAX)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_another_protocol_is_named_in_a_sentence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 64]);
            stream.write_all(b"ERROR\r\n").unwrap();
        });
        let error = hello(&address, Duration::from_secs(2)).unwrap_err();
        assert!(error.contains("does not speak the binary protocol"), "{error}");
        assert!(error.contains("ERROR"), "{error}");
        server.join().unwrap();
    }
}
