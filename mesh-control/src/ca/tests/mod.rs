//! Tests of the authority: what is signed, and above all what is not.

mod sign;
mod token;
