//! Opaque TCP: sends back what arrives; speaks first when asked to.

use anyhow::Result;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// What a server that speaks first says.
pub const BANNER: &[u8] = b"220 ready\r\n";

pub(super) async fn echo(mut stream: TcpStream, speaks_first: bool) -> Result<()> {
    stream.set_nodelay(true)?;
    if speaks_first {
        stream.write_all(BANNER).await?;
    }
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await?;
    Ok(())
}
