//! What a node says of its kernel, held to a size: a node may be anybody's by now, and all of them are kept in memory. What
//! it means is for whoever reads it; nothing is decided by it.

use proto::rpc::CaptureStatus;

use crate::fault::Fault;

/// The same, if it is of a size that we keep.
pub(super) fn checked(status: CaptureStatus) -> Result<CaptureStatus, Fault> {
    let bytes = status.refused.iter().map(|it| it.name.len() + it.reason.len()).sum::<usize>();
    let fits = status.refused.len() <= PROGRAMS_MAX
        && status.refused.iter().all(|it| it.name.len() <= NAME_BYTES_MAX)
        && status.refused.iter().all(|it| it.reason.len() <= REASON_BYTES_MAX)
        && status.failure.len() <= REASON_BYTES_MAX
        && bytes + status.failure.len() <= STATUS_BYTES_MAX;
    if !fits {
        return Err(Fault::Invalid(format!(
            "a node tells of at most {PROGRAMS_MAX} programs that its kernel refuses, with {STATUS_BYTES_MAX} bytes together"
        )));
    }
    match status.tier.as_str() {
        "" | "A" | "B" => Ok(status),
        _ => Err(Fault::Invalid("capture has the tiers A and B".into())),
    }
}

/// Twice what there are today.
const PROGRAMS_MAX: usize = 200;
/// Hooks have names of some twenty bytes.
const NAME_BYTES_MAX: usize = 64;
/// A line.
const REASON_BYTES_MAX: usize = 256;
/// Of all texts together; a node cuts its own to it, see `node::heartbeat`.
pub(super) const STATUS_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proto::rpc::RefusedProgram;

    use super::*;

    #[test]
    fn what_is_too_much_is_refused() {
        let program = |name: usize, reason: usize| RefusedProgram {
            name: "n".repeat(name),
            reason: "r".repeat(reason),
        };
        let status = |refused| CaptureStatus { tier: "B".into(), refused, ..Default::default() };
        let check = |refused, good| assert_eq!(checked(status(refused)).is_ok(), good);
        check(vec![], true);
        check(vec![program(20, 50); 200], true);
        check(vec![program(20, 50); 201], false);
        check(vec![program(20, 100); 200], false);
        check(vec![program(64, 256)], true);
        check(vec![program(65, 0)], false);
        check(vec![program(1, 257)], false);
        let failure = CaptureStatus { failure: "x".repeat(257), ..Default::default() };
        assert!(checked(failure).is_err());
        assert!(checked(CaptureStatus { tier: "\u{1b}[2J".into(), ..Default::default() }).is_err());
    }
}
