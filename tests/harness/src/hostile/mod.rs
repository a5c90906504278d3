//! Archives that somebody with bad intentions would write.

pub mod mutate;
pub mod tar;
pub mod victim;
