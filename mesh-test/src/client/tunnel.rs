//! Tunnels through a forward-proxy port: CONNECT and SOCKS5, by name and by address.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A tunnel to `target` (`host:port`) by CONNECT.
///
/// # Errors
/// When the proxy refuses; with what it said.
pub async fn connect(proxy: SocketAddr, target: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    // Byte by byte: what follows the head belongs to the tunnel.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 8192, "the answer to CONNECT does not end");
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    ensure!(head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "CONNECT refused: {head}");
    Ok(stream)
}

/// A tunnel to `host` (a name or an address) by SOCKS5.
///
/// # Errors
/// When the proxy refuses; with its code.
pub async fn socks5(proxy: SocketAddr, host: &str, port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).await?;
    ensure!(choice == [5, 0], "SOCKS5 method refused: {choice:?}");
    let mut request = vec![5, 1, 0];
    match host.parse() {
        Ok(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend(ip.octets());
        }
        Ok(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend(ip.octets());
        }
        Err(_) => {
            request.extend([3, u8::try_from(host.len())?]);
            request.extend(host.as_bytes());
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    ensure!(answer[1] == 0, "SOCKS5 refused with code {}", answer[1]);
    let rest = if answer[3] == 4 { 18 } else { 6 };
    stream.read_exact(&mut vec![0; rest]).await?;
    Ok(stream)
}
