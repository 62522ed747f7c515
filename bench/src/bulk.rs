//! Bytes without end, from the backend to the client.

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::report::Tally;

const CHUNK: usize = 256 * 1024;
/// The client speaks first, so that nobody who looks at first bytes is held up.
const GO: &[u8; 4] = b"GO!\n";

/// Takes bytes until the connection fails.
///
/// # Errors
/// The failure.
pub async fn take(to: SocketAddr, tally: &Tally) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(GO).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "closed");
        tally.received(read);
    }
}

/// Gives bytes to everyone who asks.
pub async fn give(listener: TcpListener) {
    let chunk: Rc<[u8]> = vec![7; CHUNK].into();
    while let Ok((mut stream, _)) = listener.accept().await {
        let chunk = Rc::clone(&chunk);
        tokio::task::spawn_local(async move {
            let mut go = [0; GO.len()];
            if stream.read_exact(&mut go).await.is_ok() {
                while stream.write_all(&chunk).await.is_ok() {}
            }
        });
    }
}
