//! `tctl nodes`: machines as auth last heard of them.

use proto::resource::KIND_NODE;
use serde_json::Value;

use crate::Admin;
use crate::flags::NodesCommand;
use crate::resources::{fetch, word};
use cli::failure::Failure;
use cli::output::{Format, pairs, print, rfc3339, structured, table};

/// # Errors
/// Auth's.
pub(crate) async fn run(admin: &mut Admin, command: &NodesCommand) -> Result<(), Failure> {
    let NodesCommand::Ls { format } = command;
    let nodes = fetch(admin, KIND_NODE, "").await?;
    match format {
        Format::Text => print(&list(&nodes)),
        Format::Json | Format::Yaml => print(&structured(&nodes, *format)?),
    }
}

fn list(nodes: &[Value]) -> String {
    let row = |node: &Value| {
        let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
        let labels: Vec<(String, String)> = labels
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        let last_seen = node.pointer("/spec/last_seen").and_then(Value::as_i64).unwrap_or(0);
        vec![
            word(node, "/spec/hostname"),
            word(node, "/metadata/name"),
            word(node, "/spec/role"),
            pairs(labels.iter().map(|(name, value)| (name, value))),
            word(node, "/spec/app_version"),
            rfc3339(last_seen),
        ]
    };
    let head = ["Host", "UUID", "Role", "Labels", "Version", "Last Seen (UTC)"];
    table(&head, &nodes.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_line_per_node() {
        let nodes = [json!({"metadata": {"name": "0b1f", "labels": {"env": "prod"}},
            "spec": {"hostname": "web1", "role": "node", "app_version": "0.1.0", "last_seen": 60}})];
        insta::assert_snapshot!(list(&nodes));
    }
}
