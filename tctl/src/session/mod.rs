//! `tctl session tree`: what a session ran, and what each of its programs did, from the audit log.
//!
//! - [`order`]: events in the order in which things happened
//! - [`tree`]: events to processes
//! - [`process`]: one process, and what it did
//! - [`notice`]: what is missing
//! - [`text`], [`structured`]: for people, for programs
//!
//! The log is read page by page and an event is forgotten once it has its place, so that a session of any length takes
//! bounded memory; what there is no room for is counted, and the first lines say so.

mod notice;
mod order;
mod process;
mod structured;
#[cfg(test)]
mod tests;
mod text;
mod tree;

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::event::Event;
use proto::id::SessionId;
use proto::rpc::SearchRequest;
use proto::rpc::audit_client::AuditClient;
use tonic::transport::Channel;

use self::order::Order;
use self::tree::{Room, Tree};
use crate::call;
use crate::flags::{SessionCommand, TreeArgs};
use cli::failure::Failure;
use cli::output::{Format, print};

/// # Errors
/// Auth's; no such session.
pub(crate) async fn run(channel: Channel, command: &SessionCommand) -> Result<(), Failure> {
    let SessionCommand::Tree(args) = command;
    let sid = SessionId::parse(args.session.as_str())
        .map_err(|_| Failure::usage(format!("{:?} is no session id", args.session)))?;
    let whole = args.full || args.format != Format::Text;
    let tree = read(channel, &sid, if whole { Room::WHOLE } else { Room::BRIEF }).await?;
    match args.format {
        Format::Text => print(&text::text(&tree, &shape(args))),
        Format::Json | Format::Yaml => print(&structured::structured(&tree, args.format)?),
    }
}

/// A pipe gets whole lines, as from ps(1).
fn shape(args: &TreeArgs) -> text::Shape {
    let width = rustix::termios::tcgetwinsize(std::io::stdout()).map(|size| size.ws_col);
    let columns = width.ok().filter(|columns| *columns > 0).map(usize::from);
    text::Shape { columns: columns.filter(|_| !args.full), full: args.full }
}

async fn read(channel: Channel, sid: &SessionId, room: Room) -> Result<Tree, Failure> {
    let mut audit = AuditClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut request = SearchRequest {
        session: sid.to_string(),
        oldest_first: true,
        limit: PAGE_EVENTS,
        ..SearchRequest::default()
    };
    let (mut tree, mut order, mut events) = (Tree::new(room), Order::new(ORDER_EVENTS), 0_u64);
    loop {
        let answer = audit.search(call(request.clone())).await?.into_inner();
        for json in &answer.events {
            events += 1;
            match serde_json::from_slice::<Event>(json) {
                Ok(event) => order.push(event).into_iter().for_each(|event| tree.add(event)),
                // Of a newer version than ours.
                Err(_) => tree.not_understood(),
            }
        }
        if answer.next.is_empty() {
            break;
        }
        if events >= EVENTS_MAX {
            tree.cut_off();
            break;
        }
        request.page = answer.next;
    }
    if events == 0 {
        return Err(Failure::new(format!("the audit log has no events of session {sid}"))
            .hint("`tctl events ls --type=session.start` prints the session ids."));
    }
    order.rest().into_iter().for_each(|event| tree.add(event));
    tree.finish();
    Ok(tree)
}

/// As many as auth gives at once.
const PAGE_EVENTS: u32 = 10_000;
/// A node's events come nearly in order; so many are held back to put them right.
const ORDER_EVENTS: usize = 4096;
/// A minute or two of reading; what comes after is said to be missing.
const EVENTS_MAX: u64 = 2_000_000;
