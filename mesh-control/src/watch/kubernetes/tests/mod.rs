//! The watches against an API server in memory, in virtual time.

mod cluster;
mod faults;
mod objects;
mod rules;
mod script;
