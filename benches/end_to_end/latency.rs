//! Commit to consumer.
use std::path::PathBuf;
use crate::table::Report;
pub fn measure(_programs: &[PathBuf], _seconds: u64, _report: &mut Report) {}
