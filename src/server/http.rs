//! The part of HTTP/1.1 needed to serve a few pages: parsing request heads and encoding responses.
//!
//! Bytes in, bytes out; [`super::admin`] performs the I/O. Requests with a body are answered like
//! those without, and the connection closes, since no page takes a body.

use std::fmt::Write;

/// Longest head of a request in bytes; a longer one is answered 431.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// Status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpStatus {
    /// 200.
    Ok,
    /// 400: this is not HTTP/1.
    BadRequest,
    /// 404: no such page.
    NotFound,
    /// 405: pages are read-only.
    MethodNotAllowed,
    /// 408: the head took too long to arrive.
    RequestTimeout,
    /// 431: the head is longer than [`HEAD_BYTES_MAX`].
    HeadTooLarge,
    /// 503: temporarily unavailable.
    Unavailable,
}

impl HttpStatus {
    fn line(self) -> &'static str {
        match self {
            HttpStatus::Ok => "200 OK",
            HttpStatus::BadRequest => "400 Bad Request",
            HttpStatus::NotFound => "404 Not Found",
            HttpStatus::MethodNotAllowed => "405 Method Not Allowed",
            HttpStatus::RequestTimeout => "408 Request Timeout",
            HttpStatus::HeadTooLarge => "431 Request Header Fields Too Large",
            HttpStatus::Unavailable => "503 Service Unavailable",
        }
    }
}

/// Method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A whole page.
    Get,
    /// Only the head of a page.
    Head,
    /// Any other, which no page supports.
    Other,
}

/// A request whose head has arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpRequest<'b> {
    /// The method.
    pub method: Method,
    /// The path, without a query.
    pub path: &'b [u8],
    /// Whether the client may send another request on the connection.
    pub keep_alive: bool,
    /// Length of the head in bytes.
    pub head_bytes: usize,
}

/// Parses the request at the start of `input`; `None` while its head is incomplete.
///
/// # Errors
/// The status that answers an invalid head. The connection cannot be used any longer.
pub fn parse(input: &[u8]) -> Result<Option<HttpRequest<'_>>, HttpStatus> {
    let mut at = 0;
    let mut line = || -> Option<&[u8]> {
        let end = at + memchr::memchr(b'\n', &input[at..])?;
        let line = &input[at..end];
        at = end + 1;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    };
    // Skips empty lines before a request, as the standard recommends.
    let first = loop {
        match line() {
            Some(b"") => {}
            other => break other,
        }
    };
    let Some(first) = first else { return incomplete(input) };
    let (method, path, mut keep_alive) = request_line(first)?;
    loop {
        match line() {
            None => return incomplete(input),
            Some(b"") => break,
            Some(field) => header(field, &mut keep_alive)?,
        }
    }
    if at > HEAD_BYTES_MAX {
        return Err(HttpStatus::HeadTooLarge);
    }
    Ok(Some(HttpRequest { method, path, keep_alive, head_bytes: at }))
}

fn incomplete<'b>(input: &[u8]) -> Result<Option<HttpRequest<'b>>, HttpStatus> {
    if input.len() < HEAD_BYTES_MAX { Ok(None) } else { Err(HttpStatus::HeadTooLarge) }
}

/// `GET /path?query HTTP/1.1`: method, path, and whether the version keeps connections alive.
fn request_line(line: &[u8]) -> Result<(Method, &[u8], bool), HttpStatus> {
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HttpStatus::BadRequest);
    };
    let keep_alive = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(HttpStatus::BadRequest),
    };
    if method.is_empty() || !method.iter().all(u8::is_ascii_uppercase) || !target.starts_with(b"/")
    {
        return Err(HttpStatus::BadRequest);
    }
    let method = match method {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        _ => Method::Other,
    };
    let path = target.split(|&byte| byte == b'?').next().unwrap_or(target);
    Ok((method, path, keep_alive))
}

/// `Name: value`; evaluates the fields that decide whether the connection stays open.
fn header(field: &[u8], keep_alive: &mut bool) -> Result<(), HttpStatus> {
    let colon = memchr::memchr(b':', field).ok_or(HttpStatus::BadRequest)?;
    let (name, value) = (&field[..colon], field[colon + 1..].trim_ascii());
    if name.is_empty() || name.iter().any(|byte| byte.is_ascii_whitespace()) {
        return Err(HttpStatus::BadRequest);
    }
    if name.eq_ignore_ascii_case(b"connection") {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                *keep_alive = false;
            }
        }
    }
    let has_body = name.eq_ignore_ascii_case(b"transfer-encoding")
        || name.eq_ignore_ascii_case(b"content-length") && value != b"0";
    if has_body {
        *keep_alive = false;
    }
    Ok(())
}

/// A response.
#[derive(Debug)]
pub struct HttpResponse {
    /// Its status.
    pub status: HttpStatus,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl HttpResponse {
    /// A response of one line of text.
    pub fn text(status: HttpStatus, line: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{line}\n") }
    }

    /// The bytes to send; without the body if only the head was requested.
    pub fn bytes(&self, head_only: bool, keep_alive: bool) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        let mut text = String::with_capacity(256 + body.len());
        let connection = if keep_alive { "keep-alive" } else { "close" };
        write!(
            text,
            "HTTP/1.1 {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: {connection}\r\n",
            status.line(),
            body.len()
        )
        .expect("a string takes everything");
        if *status == HttpStatus::MethodNotAllowed {
            text.push_str("Allow: GET, HEAD\r\n");
        }
        text.push_str("\r\n");
        if !head_only {
            text.push_str(body);
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> HttpRequest<'_> {
        parse(text.as_bytes()).expect("acceptable").expect("complete")
    }

    #[test]
    fn a_request_ends_with_its_empty_line() {
        let text = "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\nGET /";
        let found = request(text);
        assert_eq!((found.method, found.path), (Method::Get, &b"/metrics"[..]));
        assert!(found.keep_alive);
        assert_eq!(&text[found.head_bytes..], "GET /");
        for end in 0..found.head_bytes {
            assert_eq!(parse(&text.as_bytes()[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn bare_newlines_and_leading_empty_lines_are_accepted() {
        let found = request("\r\n\nHEAD / HTTP/1.0\nHost: a\n\n");
        assert_eq!((found.method, found.path, found.keep_alive), (Method::Head, &b"/"[..], false));
    }

    #[test]
    fn the_connection_goes_on_unless_someone_objects() {
        for (fields, keep_alive) in [
            ("", true),
            ("Connection: keep-alive\r\n", true),
            ("connection:  Upgrade , CLOSE \r\n", false),
            ("Content-Length: 0\r\n", true),
            ("Content-Length: 5\r\n", false),
            ("Transfer-Encoding: chunked\r\n", false),
        ] {
            let text = format!("GET / HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(request(&text).keep_alive, keep_alive, "{fields}");
        }
        assert_eq!(request("POST / HTTP/1.1\r\n\r\n").method, Method::Other);
    }

    #[test]
    fn what_is_no_http_1_is_refused() {
        for text in [
            "get a\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET nowhere HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1 extra\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nna me: x\r\n\r\n",
            "GET / HTTP/1.1\r\n: x\r\n\r\n",
            "\u{16}\u{3}\u{1}\n",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(HttpStatus::BadRequest), "{text}");
        }
    }

    #[test]
    fn a_head_beyond_the_limit_is_refused_whole_or_not() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse(long.as_bytes()), Err(HttpStatus::HeadTooLarge));
        assert_eq!(parse(&long.as_bytes()[..HEAD_BYTES_MAX]), Err(HttpStatus::HeadTooLarge));
        assert_eq!(parse(&long.as_bytes()[..HEAD_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(&vec![b'\n'; HEAD_BYTES_MAX]), Err(HttpStatus::HeadTooLarge));
    }

    #[test]
    fn an_answer_tells_its_length_and_a_head_keeps_the_body_to_itself() {
        let answer = HttpResponse::text(HttpStatus::Ok, "ok");
        let whole = String::from_utf8(answer.bytes(false, true)).unwrap();
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.ends_with("\r\n\r\nok\n"));
        assert!(whole.contains("Content-Length: 3\r\n") && whole.contains("keep-alive"));
        let head = String::from_utf8(answer.bytes(true, false)).unwrap();
        assert!(head.ends_with("Connection: close\r\n\r\n") && head.contains("Content-Length: 3"));
        let refusal =
            HttpResponse::text(HttpStatus::MethodNotAllowed, "only read").bytes(false, true);
        assert!(String::from_utf8(refusal).unwrap().contains("\r\nAllow: GET, HEAD\r\n"));
    }
}
