//! The admin pages over HTTP: `/health`, `/metrics` for Prometheus, `/stats` as JSON.
//!
//! Served by the control executor through glommio's own sockets, so that a scrape never delays a
//! client; the cores are queried for their statistics (see [`super::stats_collector`]). Everything
//! is bounded: connections, the size of a request, and the time for each step.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future::or;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use log::Level;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::glommio_fd;
use super::http::{self, HttpRequest, HttpResponse, HttpStatus, Method};
use super::node::Node;
use super::process;
use super::stats_collector::{CoreReport, StatsCollector, StatsRequest};
use crate::config::Config;
use crate::log_limiter::LogKind;
use crate::stats::{Snapshot, json, prometheus};

/// Maximum concurrent connections. A further one replaces the one that has been idle or slow for
/// longest, so that held connections cannot lock out a health check.
const CONNECTIONS_MAX: usize = 32;
/// Descriptors needed for them: each has a second one, through which others close it, and one more
/// may just be closing.
pub const FILES_MAX: u64 = 3 * CONNECTIONS_MAX as u64;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 64;
/// Longest wait for a request's head, and for a client to receive its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after accepting has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Opens the configured admin socket, if there is one.
///
/// # Errors
/// The address that cannot be listened on.
pub fn open(config: &Config) -> Result<Option<Socket>, (String, io::Error)> {
    let Some(address) = config.admin else { return Ok(None) };
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    open().map(Some).map_err(|error| (address.to_string(), error))
}

/// Serves the pages forever.
pub async fn serve(listener: TcpListener, node: Arc<Node>, stats_collector: Rc<StatsCollector>) {
    let admin = Rc::new(Admin { node, stats_collector, served: RefCell::default() });
    loop {
        match listener.accept().await {
            Ok(stream) => {
                glommio::spawn_local(admin.clone().connection(stream)).detach();
            }
            Err(error) => {
                let node = &admin.node;
                node.log(
                    Level::Warn,
                    LogKind::AcceptAdmin,
                    0,
                    format_args!("pausing before accepting more admin connections: {error}"),
                );
                glommio::timer::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Admin {
    node: Arc<Node>,
    stats_collector: Rc<StatsCollector>,
    /// Open connections in order of arrival; at most [`CONNECTIONS_MAX`].
    served: RefCell<Vec<Served>>,
}

/// A connection as seen by the others.
struct Served {
    /// Its socket, for others to close it.
    socket: Rc<OwnedFd>,
    /// When it last sent a whole request or received a whole answer; partial ones do not count.
    since: Instant,
}

impl Admin {
    async fn connection(self: Rc<Self>, mut stream: TcpStream) {
        // Without a descriptor for others to close it, it is not served.
        let Ok(socket) = glommio_fd::duplicate(&stream).map(Rc::new) else { return };
        self.admit(socket.clone());
        let _ = stream.set_nodelay(true);
        self.requests(&mut stream, &socket).await;
        // Before the client sees the close: its next connection finds a free place.
        self.served.borrow_mut().retain(|served| !Rc::ptr_eq(&served.socket, &socket));
        let _ = stream.shutdown(Shutdown::Write).await;
    }

    /// Admits a connection; beyond the limit, closes the one that has been idle for longest.
    fn admit(&self, socket: Rc<OwnedFd>) {
        let mut served = self.served.borrow_mut();
        if served.len() >= CONNECTIONS_MAX
            && let Some(idle) = (0..served.len()).min_by_key(|&place| served[place].since)
        {
            // Its reads and writes return at once, and its task ends.
            let _ = SockRef::from(&*served.remove(idle).socket).shutdown(Shutdown::Both);
        }
        served.push(Served { socket, since: Instant::now() });
        assert!(served.len() <= CONNECTIONS_MAX, "{} admin connections", served.len());
    }

    /// Records that a connection made progress.
    fn note_progress(&self, socket: &Rc<OwnedFd>) {
        let mut all = self.served.borrow_mut();
        if let Some(served) = all.iter_mut().find(|served| Rc::ptr_eq(&served.socket, socket)) {
            served.since = Instant::now();
        }
    }

    /// Answers requests until the client or an error ends the connection.
    async fn requests(&self, stream: &mut TcpStream, socket: &Rc<OwnedFd>) {
        let mut input = Vec::new();
        loop {
            let (bytes, used, keep_alive) = match read_head(stream, &mut input).await {
                Ok(None) => return,
                Ok(Some(request)) => {
                    self.note_progress(socket);
                    let answer = self.answer(&request).await;
                    let keep_alive = request.keep_alive && !self.node.is_stopping();
                    let bytes = answer.bytes(request.method == Method::Head, keep_alive);
                    (bytes, request.head_bytes, keep_alive)
                }
                Err(status) => {
                    let answer = HttpResponse::text(status, "not a valid HTTP/1 request");
                    (answer.bytes(false, false), 0, false)
                }
            };
            if !send(stream, &bytes).await || !keep_alive {
                return;
            }
            self.note_progress(socket);
            input.drain(..used);
        }
    }

    async fn answer(&self, request: &HttpRequest<'_>) -> HttpResponse {
        type Page = fn(&Snapshot<'_>) -> HttpResponse;
        let (request, page): (StatsRequest, Page) = match request.path {
            b"/health" | b"/metrics" | b"/stats" if request.method == Method::Other => {
                return HttpResponse::text(
                    HttpStatus::MethodNotAllowed,
                    "only GET and HEAD are allowed",
                );
            }
            b"/health" if self.node.is_stopping() => {
                return HttpResponse::text(HttpStatus::Unavailable, "stopping");
            }
            b"/health" => return HttpResponse::text(HttpStatus::Ok, "ok"),
            b"/metrics" => (StatsRequest::Totals, metrics),
            b"/stats" => (StatsRequest::Connections, stats),
            _ => {
                let help = "no such page: use /health, /metrics or /stats";
                return HttpResponse::text(HttpStatus::NotFound, help);
            }
        };
        match self.stats_collector.collect(request).await {
            Ok(told) => self.show(told, page),
            Err(core) => {
                let line = format!("core {core} did not report in time");
                HttpResponse::text(HttpStatus::Unavailable, &line)
            }
        }
    }

    fn show(&self, told: Vec<CoreReport>, page: fn(&Snapshot<'_>) -> HttpResponse) -> HttpResponse {
        let node = &self.node;
        let (cores, connections): (Vec<_>, Vec<_>) =
            told.into_iter().map(|told| (told.figures, told.connections)).unzip();
        let knobs = *node.knobs();
        page(&Snapshot {
            cluster: node.members().as_deref(),
            now: node.clock.now(),
            process: &process::stats(node.clock.uptime()),
            config: &node.config,
            knobs: &knobs,
            verbosity: node.verbosity(),
            flushed_at: node.flushed_at(),
            cores: &cores,
            connections: &connections.concat(),
        })
    }
}

fn metrics(snapshot: &Snapshot<'_>) -> HttpResponse {
    let body = prometheus::render(snapshot);
    HttpResponse { status: HttpStatus::Ok, content_type: prometheus::CONTENT_TYPE, body }
}

fn stats(snapshot: &Snapshot<'_>) -> HttpResponse {
    let body = json::render(snapshot);
    HttpResponse { status: HttpStatus::Ok, content_type: "application/json", body }
}

/// Receives until `input` begins with a whole head. `Ok(None)` if the client is gone or has no
/// further request, an error with the status for an invalid head.
async fn read_head<'b>(
    stream: &mut TcpStream,
    input: &'b mut Vec<u8>,
) -> Result<Option<HttpRequest<'b>>, HttpStatus> {
    let deadline = Instant::now() + PATIENCE;
    while http::parse(input)?.is_none() {
        let mut buffer = [0; 2048];
        let left = deadline.saturating_duration_since(Instant::now());
        match within(left, stream.read(&mut buffer)).await {
            Some(Ok(0) | Err(_)) => return Ok(None),
            Some(Ok(bytes)) => input.extend_from_slice(&buffer[..bytes]),
            None if input.is_empty() => return Ok(None),
            None => return Err(HttpStatus::RequestTimeout),
        }
    }
    http::parse(input)
}

/// Sends all bytes; false if the client does not receive them.
async fn send(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    matches!(within(PATIENCE, stream.write_all(bytes)).await, Some(Ok(())))
}

/// The result of `step`, or `None` if it takes longer than `limit`.
async fn within<T>(limit: Duration, step: impl Future<Output = T>) -> Option<T> {
    or(async { Some(step.await) }, async {
        glommio::timer::sleep(limit).await;
        None
    })
    .await
}
