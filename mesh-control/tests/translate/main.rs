//! Translation, seen from outside: golden files, and what a resource may depend on.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod cases;
mod dump;
mod golden;
mod reads;
mod world;
