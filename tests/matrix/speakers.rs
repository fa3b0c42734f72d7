//! One client for each protocol, reduced to what the matrix asks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringlane::protocol::compact::client::{Frame, ResponseFrame};
use ringlane::protocol::compact::opcode::request_flags::DETAILS;
use ringlane::protocol::compact::{Opcode, Status};

/// Longest wait for an answer: a test that meets it has found a stream out of step.
const PATIENCE: Duration = Duration::from_secs(10);

/// The protocols of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Text,
    Meta,
    Classic,
    Compact,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Text, Self::Meta, Self::Classic, Self::Compact];
}

/// A value as it was read, with its CAS token.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub value: Vec<u8>,
    pub token: u64,
}

/// One connection that speaks one protocol.
pub struct Speaker {
    protocol: Protocol,
    stream: TcpStream,
    received: Vec<u8>,
}

impl Speaker {
    pub fn connect(protocol: Protocol, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("above zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("above zero");
        Self { protocol, stream, received: Vec::new() }
    }

    /// Stores a value without a TTL; the CAS token of the answer, where the protocol tells it.
    pub fn store(&mut self, key: &str, value: &[u8]) -> Result<Option<u64>, String> {
        match self.protocol {
            Protocol::Text => {
                let line = format!("set {key} 0 0 {}\r\n", value.len());
                self.send(&[line.as_bytes(), value, b"\r\n"])?;
                expect(&self.line()?, "STORED").map(|()| None)
            }
            Protocol::Meta => {
                let line = format!("ms {key} {} c\r\n", value.len());
                self.send(&[line.as_bytes(), value, b"\r\n"])?;
                let answer = self.line()?;
                let token = answer.strip_prefix("HD c").and_then(|token| token.parse().ok());
                token.map(Some).ok_or_else(|| format!("stored: {answer:?}"))
            }
            Protocol::Classic => {
                let head = classic(0x01, key, 8, value.len());
                self.send(&[&head, &[0; 8], key.as_bytes(), value])?;
                let (status, token, body) = self.packet()?;
                let said = String::from_utf8_lossy(&body);
                if status == 0 { Ok(Some(token)) } else { Err(format!("stored: {said}")) }
            }
            Protocol::Compact => {
                let frame = Frame { flags: DETAILS, ..Frame::set(key.as_bytes(), value, 1) };
                let (status, version, _) = self.ask(frame)?;
                if status == Status::Ok { Ok(version) } else { Err(format!("stored: {status:?}")) }
            }
        }
    }

    /// Reads a value that must be there.
    pub fn read(&mut self, key: &str) -> Result<Found, String> {
        match self.protocol {
            Protocol::Text => {
                self.send(&[format!("gets {key}\r\n").as_bytes()])?;
                let header = self.line()?;
                let words: Vec<&str> = header.split(' ').collect();
                let [_, _, _, bytes, token] = words[..] else { return Err(header) };
                let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
                let value = self.exactly(number(bytes)? as usize)?;
                let token = number(token)?;
                expect(&self.line()?, "")?;
                expect(&self.line()?, "END")?;
                Ok(Found { value, token })
            }
            Protocol::Meta => {
                self.send(&[format!("mg {key} c v\r\n").as_bytes()])?;
                let header = self.line()?;
                let words: Vec<&str> = header.split(' ').collect();
                let ["VA", bytes, token] = words[..] else { return Err(header) };
                let bytes = bytes.parse().map_err(|_| header.clone())?;
                let token = token.strip_prefix('c').and_then(|token| token.parse().ok());
                let token = token.ok_or_else(|| header.clone())?;
                let value = self.exactly(bytes)?;
                expect(&self.line()?, "")?;
                Ok(Found { value, token })
            }
            Protocol::Classic => {
                self.send(&[&classic(0x00, key, 0, 0), key.as_bytes()])?;
                let (status, token, body) = self.packet()?;
                match status {
                    0 => Ok(Found { value: body[4..].to_vec(), token }),
                    _ => Err(String::from_utf8_lossy(&body).into_owned()),
                }
            }
            Protocol::Compact => {
                let frame = Frame { flags: DETAILS, ..Frame::get(key.as_bytes(), 2) };
                let (status, version, value) = self.ask(frame)?;
                match (status, version) {
                    (Status::Ok, Some(token)) => Ok(Found { value, token }),
                    _ => Err(format!("{status:?} with version {version:?}")),
                }
            }
        }
    }

    /// All of `stats TOPIC`: names and values, or `detail dump` as one text.
    pub fn stats(&mut self, topic: &str) -> Result<Vec<(String, String)>, String> {
        match self.protocol {
            Protocol::Text | Protocol::Meta => {
                self.send(&[format!("stats {topic}\r\n").as_bytes()])?;
                let mut found = Vec::new();
                loop {
                    let line = self.line()?;
                    if line == "END" {
                        return Ok(found);
                    }
                    match line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' ')) {
                        Some((name, value)) => found.push((name.into(), value.into())),
                        None => found.push((String::new(), line)),
                    }
                }
            }
            Protocol::Classic => {
                self.send(&[&classic(0x10, topic, 0, 0), topic.as_bytes()])?;
                let mut found = Vec::new();
                loop {
                    let (name, value) = self.named_packet()?;
                    if name.is_empty() {
                        return Ok(found);
                    }
                    found.push((name, value));
                }
            }
            Protocol::Compact => {
                let mut bytes = Vec::new();
                Frame { key: topic.as_bytes(), ..Frame::new(Opcode::Stats, 3) }.encode(&mut bytes);
                self.send(&[&bytes])?;
                let mut found = Vec::new();
                loop {
                    let decoded = ResponseFrame::decode(&self.received);
                    let Some((response, length)) = decoded.map_err(|error| format!("{error:?}"))?
                    else {
                        self.more()?;
                        continue;
                    };
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let (name, value) = (text(response.key), text(response.value));
                    self.received.drain(..length);
                    if name.is_empty() {
                        return Ok(found);
                    }
                    found.push((name, value));
                }
            }
        }
    }

    /// A line of the text protocol, sent and answered by one.
    pub fn line_of(&mut self, line: &str) -> Result<String, String> {
        self.send(&[line.as_bytes(), b"\r\n"])?;
        self.line()
    }

    fn ask(&mut self, frame: Frame<'_>) -> Result<(Status, Option<u64>, Vec<u8>), String> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send(&[&bytes])?;
        loop {
            let decoded = ResponseFrame::decode(&self.received);
            if let Some((response, length)) = decoded.map_err(|error| format!("{error:?}"))? {
                let answer = (response.status, response.version, response.value.to_vec());
                self.received.drain(..length);
                return Ok(answer);
            }
            self.more()?;
        }
    }

    /// Status, CAS token and body of the next classic packet.
    fn packet(&mut self) -> Result<(u16, u64, Vec<u8>), String> {
        let head = self.exactly(24)?;
        if head[0] != 0x81 {
            return Err(format!("no packet: {:?}", String::from_utf8_lossy(&head)));
        }
        let body = u32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
        let status = u16::from_be_bytes(head[6..8].try_into().expect("two bytes"));
        let token = u64::from_be_bytes(head[16..24].try_into().expect("eight bytes"));
        Ok((status, token, self.exactly(body as usize)?))
    }

    /// Key and value of the next classic packet.
    fn named_packet(&mut self) -> Result<(String, String), String> {
        let head = self.exactly(24)?;
        if head[0] != 0x81 {
            return Err(format!("no packet: {:?}", String::from_utf8_lossy(&head)));
        }
        let body = u32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
        let key = usize::from(u16::from_be_bytes(head[2..4].try_into().expect("two bytes")));
        let body = self.exactly(body as usize)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&body[..key]), text(&body[key..])))
    }

    fn send(&mut self, parts: &[&[u8]]) -> Result<(), String> {
        self.stream.write_all(&parts.concat()).map_err(|error| error.to_string())
    }

    fn more(&mut self) -> Result<(), String> {
        let mut chunk = [0; 64 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err("closed instead of an answer".into()),
            Ok(bytes) => {
                self.received.extend_from_slice(&chunk[..bytes]);
                Ok(())
            }
            Err(error) => Err(format!("no answer: {error}")),
        }
    }

    fn exactly(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.received.len() < count {
            self.more()?;
        }
        Ok(self.received.drain(..count).collect())
    }

    fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more()?;
        }
    }
}

/// The header of a classic request.
fn classic(opcode: u8, key: &str, extras: u8, value_bytes: usize) -> Vec<u8> {
    let mut head = vec![0x80, opcode];
    head.extend((key.len() as u16).to_be_bytes());
    head.extend([extras, 0, 0, 0]);
    head.extend(((usize::from(extras) + key.len() + value_bytes) as u32).to_be_bytes());
    head.extend([0; 12]);
    head
}

fn expect(answer: &str, wanted: &str) -> Result<(), String> {
    if answer == wanted { Ok(()) } else { Err(format!("{answer:?} instead of {wanted:?}")) }
}
