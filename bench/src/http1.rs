//! A small HTTP/1.1 client: cheap enough not to be what is measured.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::report::Tally;
use crate::schedule::Due;

/// A connection that is kept.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Sends a request, and reads its answer to the end.
    ///
    /// # Errors
    /// When the answer is not 200 and whole.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        let mut length = 0;
        let (head, body) = loop {
            ensure!(length < self.buffer.len(), "the answer's head is too large");
            let read = self.stream.read(&mut self.buffer[length..]).await?;
            ensure!(read > 0, "closed before the answer was whole");
            length += read;
            if let Some(found) = head(&self.buffer[..length])? {
                break found;
            }
        };
        let mut left = (head + body).checked_sub(length).context("more came than the answer")?;
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "closed before the answer was whole");
            left = left.checked_sub(read).context("more came than the answer")?;
        }
        Ok(())
    }
}

/// A request for an answer of so many bytes.
pub fn request(authority: &str, bytes: usize, close: bool) -> String {
    let close = if close { "connection: close\r\n" } else { "" };
    format!("GET /{bytes} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: bench\r\n{close}\r\n")
}

/// Lengths of an answer's head and body, once the head is whole.
fn head(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        bail!("{head}");
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Ok(Some((end + 4, length.with_context(|| format!("no length: {head}"))?)))
}

/// Requests on one connection, as they are due, until one fails.
///
/// # Errors
/// The failure.
pub async fn run(to: SocketAddr, authority: &str, bytes: usize, tally: &Tally, due: &mut Due) -> Result<()> {
    let mut connection = Connection::open(to).await?;
    let request = request(authority, bytes, false);
    while let Some(due) = due.next().await {
        connection.exchange(request.as_bytes()).await?;
        tally.answered(due);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_where_they_say() {
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nab").unwrap(), Some((38, 7)));
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(head(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
    }
}
