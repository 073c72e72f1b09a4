//! `tsh ls`: the hosts that the caller may open a session on.

use std::collections::BTreeMap;

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::rpc::inventory_client::InventoryClient;
use proto::rpc::{ListNodesRequest, Node};
use serde::Serialize;

use crate::first_contact::call;
use crate::flags::{ListFormat, LsArgs};
use crate::signed_in::SignedIn;
use cli::failure::Failure;
use cli::output::{Format, pairs, plain, print, rfc3339, structured, table};

/// One host in the structured forms.
#[derive(Debug, Serialize)]
struct Shown {
    host_id: String,
    nodename: String,
    address: String,
    labels: BTreeMap<String, String>,
    logins: Vec<String>,
    version: String,
    last_seen: String,
}

/// # Errors
/// Auth does not answer.
pub(crate) async fn run(signed_in: &SignedIn, args: &LsArgs) -> Result<(), Failure> {
    let wanted = parse_labels(args.labels.as_deref().unwrap_or_default())?;
    let mut inventory =
        InventoryClient::new(signed_in.auth()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut nodes = inventory.list_nodes(call(ListNodesRequest {})).await?.into_inner().nodes;
    nodes.retain(|node| wanted.iter().all(|(name, value)| node.labels.get(name) == Some(value)));
    nodes.sort_by(|a, b| (&a.nodename, &a.host_id).cmp(&(&b.nodename, &b.host_id)));
    print(&render(nodes, args)?)
}

fn render(nodes: Vec<Node>, args: &LsArgs) -> Result<String, Failure> {
    match args.format {
        ListFormat::Names => {
            Ok(nodes.iter().map(|node| format!("{}\n", plain(&node.nodename))).collect())
        }
        ListFormat::Text if args.verbose => Ok(verbose(&nodes)),
        ListFormat::Text => Ok(brief(&nodes)),
        ListFormat::Json => structured(&shown(nodes), Format::Json),
        ListFormat::Yaml => structured(&shown(nodes), Format::Yaml),
    }
}

fn brief(nodes: &[Node]) -> String {
    let row = |node: &Node| vec![node.nodename.clone(), TUNNEL.into(), pairs(&node.labels)];
    table(&["Node Name", "Address", "Labels"], &nodes.iter().map(row).collect::<Vec<_>>())
}

fn verbose(nodes: &[Node]) -> String {
    let row = |node: &Node| {
        vec![
            node.nodename.clone(),
            node.host_id.clone(),
            TUNNEL.into(),
            pairs(&node.labels),
            node.logins.join(","),
            node.version.clone(),
        ]
    };
    let head = ["Node Name", "Node ID", "Address", "Labels", "Logins", "Version"];
    table(&head, &nodes.iter().map(row).collect::<Vec<_>>())
}

fn shown(nodes: Vec<Node>) -> Vec<Shown> {
    nodes
        .into_iter()
        .map(|node| Shown {
            host_id: node.host_id,
            nodename: node.nodename,
            address: TUNNEL.into(),
            labels: node.labels.into_iter().collect(),
            logins: node.logins,
            version: node.version,
            last_seen: rfc3339(node.last_seen),
        })
        .collect()
}

/// `a=b,c=d`.
fn parse_labels(text: &str) -> Result<Vec<(String, String)>, Failure> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(Failure::usage(format!("{pair:?} is no label: write name=value"))),
        })
        .collect()
}

/// Every host is reached through its tunnel.
const TUNNEL: &str = "⟵ Tunnel";

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<Node> {
        vec![Node {
            host_id: "0b1f".into(),
            nodename: "web1".into(),
            labels: [("team".to_owned(), "a".to_owned()), ("env".to_owned(), "prod".to_owned())]
                .into(),
            version: "0.1.0".into(),
            last_seen: 1,
            logins: vec!["root".into()],
        }]
    }

    fn check(format: ListFormat, verbose: bool) -> String {
        render(nodes(), &LsArgs { verbose, format, labels: None }).unwrap()
    }

    #[test]
    fn every_format_tells_the_same() {
        let all = [
            check(ListFormat::Text, false),
            check(ListFormat::Text, true),
            check(ListFormat::Json, false),
            check(ListFormat::Yaml, false),
            check(ListFormat::Names, false),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(parse_labels("a=b, c=d=e").unwrap().len(), 2);
        assert_eq!(parse_labels("").unwrap().len(), 0);
        assert!(parse_labels("prod").is_err());
    }
}
