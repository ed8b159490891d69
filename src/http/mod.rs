//! Health, metrics and the webhook receiver.
//!
//! This room answers; it never acts. Health and metrics are for the cluster and have a port of their own, apart
//! from the webhook's, which strangers may reach. Nothing that a caller sends is trusted or kept.

mod connections;
mod health;
mod webhook;

pub use health::{Readiness, ReadyHandle, serve_health};
pub use webhook::{Access, Limits, Repositories, serve_webhooks};

#[cfg(test)]
pub(crate) mod testing {
    //! A caller that may misbehave: it sends exactly the bytes it is told to.

    use std::net::SocketAddr;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// An answer: the status and the body.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Answer {
        pub status: u16,
        pub head: String,
        pub body: String,
    }

    /// Sends a whole request and reads until the server closes. `None` when it closes without an answer.
    pub async fn send(address: SocketAddr, request: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may close before it has read everything.
        let _ = stream.write_all(request).await;
        receive(stream).await
    }

    pub async fn receive(mut stream: TcpStream) -> Option<Answer> {
        let mut bytes = Vec::new();
        let reading = stream.read_to_end(&mut bytes);
        let _ = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("no end of the answer");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
    }

    pub async fn get(address: SocketAddr, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\n\r\n");
        send(address, request.as_bytes()).await.expect("an answer")
    }
}
