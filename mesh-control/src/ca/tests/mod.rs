//! Tests of the authority: what is signed, and above all what is not.

mod review;
mod secret;
mod serve;
mod sign;
mod token;
