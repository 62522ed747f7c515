//! What stands at both ends of the proxies when they are measured: a client that loads them, and a backend. Both have
//! one thread each, so that they take the same share of a small machine whichever proxy is between them.

pub mod backend;
pub mod bulk;
pub mod http1;
pub mod http2;
pub mod load;
pub mod parts;
pub mod report;
pub mod schedule;

/// Runs hyper's tasks on the thread that they come from.
#[derive(Debug, Clone, Copy)]
pub struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Length of a gRPC message's head.
pub(crate) const GRPC_HEAD: usize = 5;

/// A gRPC message of `length` bytes with its head.
pub(crate) fn grpc_message(length: usize) -> bytes::Bytes {
    let mut message = vec![b'x'; GRPC_HEAD + length];
    message[0] = 0;
    message[1..GRPC_HEAD].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.into()
}
