//! What stands in the way of a capture, as `criu dump --check` and `container checkpoint --dry-run`
//! print it.

use arctern_engine::Refusal;
use serde_json::json;

/// Prints all of it on standard output; the exit code: 1 if there is anything.
pub fn print(refusals: &[Refusal], as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        outln!("{}", serde_json::to_string_pretty(&json!({ "blockers": refusals }))?);
    } else if refusals.is_empty() {
        outln!("Nothing is in the way.");
    } else {
        outln!("{} thing(s) cannot be captured:", refusals.len());
        for refusal in refusals {
            outln!("  {refusal}");
        }
    }
    Ok(u8::from(!refusals.is_empty()))
}
