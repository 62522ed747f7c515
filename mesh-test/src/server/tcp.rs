//! Opaque TCP: sends back what arrives; speaks first when asked to.

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// What a server that speaks first says.
pub const BANNER: &[u8] = b"220 ready\r\n";

pub(super) async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, speaks_first: bool) -> Result<()> {
    if speaks_first {
        stream.write_all(BANNER).await?;
    }
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await?;
    Ok(())
}
