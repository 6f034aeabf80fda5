//! The smallest HTTP request that tells whether a server on 127.0.0.1 answers; usable with and without a runtime.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Sends `method target` with this body, which may be empty, and gives the status of the answer; `None` when there is none.
pub(super) fn http_status(port: u16, method: &str, target: &str, body: &str) -> Option<u16> {
    let answer = answer(port, method, target, body)?;
    let line = answer.split(|byte| *byte == b'\r').next()?;
    std::str::from_utf8(line).ok()?.split(' ').nth(1)?.parse().ok()
}

/// What a server answers to `GET target`, behind the head; `None` when it does not answer.
pub(super) fn http_body(port: u16, target: &str) -> Option<String> {
    let answer = String::from_utf8(answer(port, "GET", target, "")?).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn answer(port: u16, method: &str, target: &str, body: &str) -> Option<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).ok()?;
    Some(answer)
}
