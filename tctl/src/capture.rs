//! `tctl capture status`: what the kernels of nodes tell of sessions, as each node said it last.

use std::collections::BTreeMap;

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::rpc::inventory_client::InventoryClient;
use proto::rpc::{CaptureRecords, CaptureStatus, ListCaptureRequest, NodeCapture};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::call;
use crate::flags::CaptureCommand;
use cli::failure::Failure;
use cli::output::{Format, plain, print, rfc3339, structured};

/// # Errors
/// Auth's; no such node.
pub(crate) async fn run(channel: Channel, command: &CaptureCommand) -> Result<(), Failure> {
    let CaptureCommand::Status { format, node } = command;
    let mut nodes = fetch(channel, node.as_deref().unwrap_or_default()).await?;
    if let (Some(node), true) = (node, nodes.is_empty()) {
        return Err(Failure::new(format!("no node {:?} is there", plain(node)))
            .hint("`tctl nodes ls` lists them."));
    }
    nodes.sort_by(|a, b| (&a.nodename, &a.host_id).cmp(&(&b.nodename, &b.host_id)));
    match format {
        Format::Text => print(&nodes.iter().map(text).collect::<Vec<_>>().join("\n")),
        Format::Json | Format::Yaml => {
            print(&structured(&nodes.iter().map(value).collect::<Vec<_>>(), *format)?)
        }
    }
}

async fn fetch(channel: Channel, node: &str) -> Result<Vec<NodeCapture>, Failure> {
    let mut inventory = InventoryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut request = ListCaptureRequest { node: node.to_owned(), page: String::new() };
    let mut nodes = Vec::new();
    loop {
        let answer = inventory.list_capture(call(request.clone())).await?.into_inner();
        nodes.extend(answer.nodes);
        if answer.next.is_empty() {
            return Ok(nodes);
        }
        request.page = answer.next;
    }
}

fn text(node: &NodeCapture) -> String {
    let head = format!("{} ({})", plain(&node.nodename), plain(&node.host_id));
    let Some(status) = &node.capture else {
        return format!("{head}: has not said what its kernel tells\n");
    };
    let mut lines = vec![match status.tier.as_str() {
        "A" => format!("{head}: tier A, the kernel asks before things happen"),
        "B" => format!("{head}: tier B, the kernel tells of what has happened"),
        _ => format!("{head}: NOTHING is captured: {}", plain(&status.failure)),
    }];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    line("since", rfc3339(status.since));
    line("sessions", status.sessions.to_string());
    let records = status.records.unwrap_or_default();
    line("records", by_class(["programs", "files", "network"], counts(&records)));
    line(
        "per second",
        match rates(status) {
            Some(rates) => {
                by_class(["programs", "files", "network"], rates.map(|r| format!("{r:.1}")))
            }
            None => "not known yet".to_owned(),
        },
    );
    line("lost", status.lost.to_string());
    let refused = status.refused.len() + usize::try_from(status.refused_more).unwrap_or(0);
    line("kernel", format!("takes {} of our programs, refuses {refused}", status.programs));
    lines.extend(refusals(status));
    lines.join("\n") + "\n"
}

/// Programs that are refused for the same reason share a line.
fn refusals(status: &CaptureStatus) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for program in &status.refused {
        by_reason.entry(&program.reason).or_default().push(plain(&program.name));
    }
    let line = |(reason, names): (&str, Vec<String>)| {
        let more = match names.len().saturating_sub(NAMES_MAX) {
            0 => String::new(),
            more => format!(" and {more} more (--format json has all)"),
        };
        let names: Vec<_> = names.into_iter().take(NAMES_MAX).collect();
        format!("    {}{more}: {}", names.join(", "), plain(reason))
    };
    let mut lines: Vec<String> = by_reason.into_iter().map(line).collect();
    if status.tier == "B" {
        lines.push("    Others stand in for those that only tier A has.".to_owned());
    }
    if status.refused_more > 0 {
        lines.push(format!(
            "    and {} more, of which the node did not say why",
            status.refused_more
        ));
    }
    lines
}

/// Of the programs with one reason, so many are named.
const NAMES_MAX: usize = 6;

fn by_class(names: [&str; 3], values: [String; 3]) -> String {
    let pairs = names.iter().zip(values).map(|(name, value)| format!("{name} {value}"));
    pairs.collect::<Vec<_>>().join(", ")
}

fn counts(records: &CaptureRecords) -> [String; 3] {
    [records.control, records.file, records.network].map(|count| count.to_string())
}

/// Records per second since the heartbeat before; `None` after the first.
fn rates(status: &CaptureStatus) -> Option<[f64; 3]> {
    let recent = status.recent.filter(|_| status.recent_ms > 0)?;
    let seconds = f64::from(status.recent_ms) / 1000.0;
    // More than 2^32 in half a minute is no kernel's.
    let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Some([recent.control, recent.file, recent.network].map(|count| number(count) / seconds))
}

fn value(node: &NodeCapture) -> Value {
    let by_class = |records: [Value; 3]| {
        let [control, file, network] = records;
        json!({"control": control, "file": file, "network": network})
    };
    let capture = node.capture.as_ref().map(|status| {
        let records = status.records.unwrap_or_default();
        let records = [records.control, records.file, records.network];
        let refused: Vec<Value> = status
            .refused
            .iter()
            .map(|program| json!({"name": program.name, "reason": program.reason}))
            .collect();
        json!({
            "tier": status.tier,
            "failure": status.failure,
            "programs": status.programs,
            "refused": refused,
            "refused_more": status.refused_more,
            "records": by_class(records.map(Value::from)),
            "records_per_second": rates(status).map(|rates| by_class(rates.map(Value::from))),
            "lost": status.lost,
            "sessions": status.sessions,
            "since": rfc3339(status.since),
        })
    });
    json!({
        "host_id": node.host_id,
        "nodename": node.nodename,
        "last_seen": rfc3339(node.last_seen),
        "capture": capture,
    })
}

#[cfg(test)]
mod tests {
    use proto::rpc::RefusedProgram;

    use super::*;

    fn node() -> NodeCapture {
        let refused =
            |name: &str, reason: &str| RefusedProgram { name: name.into(), reason: reason.into() };
        let records = |control| CaptureRecords { control, file: 6, network: 0 };
        NodeCapture {
            host_id: "0b1f".into(),
            nodename: "web1".into(),
            last_seen: 60,
            capture: Some(CaptureStatus {
                tier: "B".into(),
                programs: 2,
                refused: vec![
                    refused("task_alloc", "no \u{1b}[2JLSM"),
                    refused("bprm_creds_for_exec", "no \u{1b}[2JLSM"),
                    refused("x\ny", "other"),
                ],
                refused_more: 1,
                records: Some(records(90)),
                recent: Some(records(15)),
                recent_ms: 30_000,
                lost: 3,
                sessions: 1,
                since: 30,
                ..CaptureStatus::default()
            }),
        }
    }

    #[test]
    fn a_node_for_people_and_programs() {
        insta::assert_snapshot!(text(&node()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&value(&node())).unwrap());
    }

    #[test]
    fn nodes_that_tell_nothing_say_why_or_are_said_to_be_silent() {
        let failure = CaptureStatus { failure: "no BTF".into(), ..CaptureStatus::default() };
        let without = NodeCapture { capture: Some(failure), ..node() };
        assert!(text(&without).starts_with("web1 (0b1f): NOTHING is captured: no BTF\n"));
        assert!(text(&without).contains("not known yet"));
        let silent = NodeCapture { capture: None, ..node() };
        assert_eq!(text(&silent), "web1 (0b1f): has not said what its kernel tells\n");
        assert_eq!(value(&silent)["capture"], Value::Null);
    }
}
