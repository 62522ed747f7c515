//! What the control plane decided, as plain data: no protos, no I/O, no clock. Everything on the data path
//! reads this; only `xds` writes it. A value of these types is usable: it was refused at decoding otherwise.

pub mod cluster;
pub mod listener;
pub mod route;
pub mod store;
