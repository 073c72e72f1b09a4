//! Resources as YAML: `get`, `create`, `rm`, `lock`, and the lists made of them. The text travels to auth as JSON, where
//! it is checked; an unknown key is auth's refusal, so that old and new programs agree on what is known.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use proto::resource::{KIND_LOCK, KIND_NODE, KIND_ROLE, KIND_TOKEN, KIND_USER, LOCK_VERSION};
use proto::rpc::{DeleteResourceRequest, GetResourcesRequest, PutResourceRequest};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::flags::{CreateArgs, GetArgs, LockArgs};
use crate::{Admin, call};
use cli::failure::{Failure, Fallible as _};
use cli::output::{Format, plain, plain_lines, print, rfc3339, structured, table};

/// All of a kind, or the named one, as JSON values.
///
/// # Errors
/// Auth's.
pub(crate) async fn fetch(
    admin: &mut Admin,
    kind: &str,
    name: &str,
) -> Result<Vec<Value>, Failure> {
    let request = GetResourcesRequest { kind: kind.into(), name: name.into() };
    let answer = admin.get_resources(call(request)).await?.into_inner().resources;
    let values: Result<Vec<Value>, _> =
        answer.iter().map(|json| serde_json::from_slice(json)).collect();
    let values = values.doing("auth's answer is not understood")?;
    if values.is_empty() && !name.is_empty() {
        return Err(Failure::new(format!("{kind}/{name} was not found")));
    }
    Ok(values)
}

/// # Errors
/// Auth's, or an unknown kind.
pub(crate) async fn get(admin: &mut Admin, args: &GetArgs) -> Result<(), Failure> {
    let mut values = Vec::new();
    match args.what.as_deref() {
        None | Some("all") => {
            for kind in [KIND_ROLE, KIND_USER, KIND_LOCK, KIND_NODE] {
                values.extend(fetch(admin, kind, "").await?);
            }
        }
        Some(list) => {
            for one in list.split(',') {
                let (kind, name) = split(one)?;
                values.extend(fetch(admin, kind, name).await?);
            }
        }
    }
    print(&render(&values, args.format)?)
}

fn render(values: &[Value], format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => structured(&values, format),
        Format::Yaml => {
            let documents: Result<Vec<String>, Failure> =
                values.iter().map(|value| structured(value, format)).collect();
            Ok(documents?.join("---\n"))
        }
        Format::Text => {
            let row = |value: &Value| {
                vec![word(value, "/kind"), word(value, "/metadata/name"), word(value, "/version")]
            };
            Ok(table(&["Kind", "Name", "Version"], &values.iter().map(row).collect::<Vec<_>>()))
        }
    }
}

/// # Errors
/// The file is no YAML, or auth refuses one of its resources; those before it stand.
pub(crate) async fn create(admin: &mut Admin, args: &CreateArgs) -> Result<(), Failure> {
    let text = read_all(&args.file)?;
    let documents = parse(&text).doing(args.file.display())?;
    if documents.is_empty() {
        return Err(Failure::new(format!("{}: there is no resource in it", args.file.display())));
    }
    for document in documents {
        put(admin, &document, args.force).await?;
    }
    Ok(())
}

async fn put(admin: &mut Admin, resource: &Value, overwrite: bool) -> Result<(), Failure> {
    let request = PutResourceRequest { resource: serde_json::to_vec(resource)?, overwrite };
    let answer = admin.put_resource(call(request)).await;
    let answer = answer.map_err(refused)?.into_inner();
    let done = if answer.created { "created" } else { "updated" };
    print(&format!("{} {:?} has been {done}\n", plain(&answer.kind), plain(&answer.name)))
}

/// Auth's positions are those in the JSON that it got, which nobody wrote.
fn refused(status: tonic::Status) -> Failure {
    let exists = status.code() == tonic::Code::AlreadyExists;
    let failure = if status.code() == tonic::Code::InvalidArgument {
        Failure::new(plain(&without_positions(status.message())))
    } else {
        Failure::from(status)
    };
    if exists {
        failure.hint("Pass -f to replace it.")
    } else if failure.message().contains("invalid type: boolean") {
        failure.hint("YAML reads y, n, yes, no, on and off as true or false: put them into quotes.")
    } else {
        failure
    }
}

/// Without ` at line N column M`.
fn without_positions(text: &str) -> String {
    let mut parts = text.split(" at line ");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let after = after_number(part)
            .and_then(|rest| rest.strip_prefix(" column "))
            .and_then(after_number);
        match after {
            Some(rest) => kept.push_str(rest),
            None => kept.extend([" at line ", part]),
        }
    }
    kept
}

fn after_number(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    (rest.len() < text.len()).then_some(rest)
}

/// One value per YAML document; empty documents are skipped.
fn parse(text: &str) -> Result<Vec<Value>, Failure> {
    // The error shows the place in lines of its own.
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| Failure::new(plain_lines(&error.to_string())))?;
    let documents: Vec<Value> = documents.into_iter().filter(|value| !value.is_null()).collect();
    match documents.iter().find(|value| !value.is_object()) {
        Some(_) => Err(Failure::new("a resource has kind, version, metadata and spec")),
        None => Ok(documents),
    }
}

fn read_all(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    } else {
        let opened = std::fs::File::open(file).doing(file.display())?;
        opened.take(FILE_BYTES_MAX).read_to_string(&mut text).doing(file.display())?;
    }
    Ok(text)
}

/// # Errors
/// Auth's.
pub(crate) async fn remove(admin: &mut Admin, resource: &str) -> Result<(), Failure> {
    let (kind, name) = split(resource)?;
    if name.is_empty() {
        return Err(Failure::usage(format!("{resource:?}: write KIND/NAME")));
    }
    delete(admin, kind, name).await?;
    print(&format!("{kind} {name:?} has been removed\n"))
}

/// # Errors
/// Auth's.
pub(crate) async fn delete(admin: &mut Admin, kind: &str, name: &str) -> Result<(), Failure> {
    let request = DeleteResourceRequest { kind: kind.into(), name: name.into() };
    admin.delete_resource(call(request)).await?;
    Ok(())
}

/// # Errors
/// Auth's.
pub(crate) async fn lock(admin: &mut Admin, args: &LockArgs) -> Result<(), Failure> {
    let name = lock_name(net::random16());
    let resource = lock_resource(args, &name, OffsetDateTime::now_utc())?;
    let request = PutResourceRequest { resource: serde_json::to_vec(&resource)?, overwrite: false };
    admin.put_resource(call(request)).await?;
    // It holds for one who comes later; but a name that was mistyped keeps nobody out.
    if let Some(user) = &args.user
        && is_missing(admin, KIND_USER, user).await
    {
        eprintln!("warning: there is no user {user:?} now; see `tctl users ls`");
    }
    print(&format!("lock {name:?} has been created; lift it with `tctl rm lock/{name}`\n"))
}

/// False where auth does not say.
async fn is_missing(admin: &mut Admin, kind: &str, name: &str) -> bool {
    let request = GetResourcesRequest { kind: kind.into(), name: name.into() };
    match admin.get_resources(call(request)).await {
        Ok(answer) => answer.into_inner().resources.is_empty(),
        Err(status) => status.code() == tonic::Code::NotFound,
    }
}

fn lock_name(random: [u8; 16]) -> String {
    proto::id::uuid_text(random)
}

fn lock_resource(args: &LockArgs, name: &str, now: OffsetDateTime) -> Result<Value, Failure> {
    let targets =
        [("user", &args.user), ("role", &args.role), ("login", &args.login), ("node", &args.node)];
    let target = targets.iter().find_map(|(kind, value)| Some((*kind, value.as_ref()?)));
    let (kind, value) = target.ok_or_else(|| Failure::usage("whom or what?"))?;
    let mut metadata = BTreeMap::from([("name", json!(name))]);
    if let Some(ttl) = args.ttl {
        let expires = now + ttl.0;
        metadata.insert("expires", json!(rfc3339(expires.unix_timestamp())));
    }
    Ok(json!({
        "kind": KIND_LOCK,
        "version": LOCK_VERSION,
        "metadata": metadata,
        "spec": {"target": {kind: value}, "message": args.message},
    }))
}

/// `kind[/name]`, plurals forgiven.
fn split(text: &str) -> Result<(&'static str, &str), Failure> {
    let (kind, name) = text.split_once('/').unwrap_or((text, ""));
    let kind = match kind {
        "lock" | "locks" => KIND_LOCK,
        "node" | "nodes" => KIND_NODE,
        "role" | "roles" => KIND_ROLE,
        "token" | "tokens" => KIND_TOKEN,
        "user" | "users" => KIND_USER,
        _ => {
            return Err(Failure::usage(format!("there is no kind {kind:?}"))
                .hint("Kinds: role, user, token, lock, node."));
        }
    };
    Ok((kind, name))
}

/// The text at a JSON pointer; empty if there is none.
pub(crate) fn word(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The texts of the list at a JSON pointer, with commas.
pub(crate) fn words(value: &Value, pointer: &str) -> String {
    let list = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

/// A file of resources is written by people; auth takes less at once.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "kind: role\nversion: v7\nmetadata: {name: a}\nspec:\n  allow:\n    \
        node_labels: {'*': '*'}\n    logins: [root, '{{internal.logins}}']\n---\n---\n\
        kind: role\nversion: v7\nmetadata: {name: b}\nspec: {options: {max_session_ttl: 8h}}\n";

    #[test]
    fn several_resources_in_one_file() {
        let documents = parse(TWO).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0]["spec"]["allow"]["node_labels"]["*"], "*");
        assert_eq!(documents[0]["spec"]["allow"]["logins"][1], "{{internal.logins}}");
        assert_eq!(documents[1]["spec"]["options"]["max_session_ttl"], "8h");
        assert!(parse("- a\n- b\n").is_err());
        assert!(parse("kind: [\n").is_err());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn positions_in_json_are_not_told() {
        fn check(text: &str, expect: &str) {
            assert_eq!(without_positions(text), expect);
        }
        check("unknown field `x` at line 1 column 20", "unknown field `x`");
        check("a at line 1 column 2; b at line 3 column 4.", "a; b.");
        check("stand at line up", "stand at line up");
        let status =
            tonic::Status::invalid_argument("invalid type: boolean `true` at line 1 column 9");
        assert_eq!(refused(status).message(), "invalid type: boolean `true`");
        let status = tonic::Status::already_exists("role \"a\" exists");
        assert!(refused(status).text().ends_with("Pass -f to replace it."));
    }

    #[test]
    fn mistakes_in_yaml_are_shown_in_their_lines() {
        let failure = parse("kind: role\nspec: [\n").unwrap_err();
        assert!(failure.message().contains('\n'), "{}", failure.message());
    }

    #[test]
    fn what_get_prints_can_be_created_again() {
        let documents = parse(TWO).unwrap();
        let text = render(&documents, Format::Yaml).unwrap();
        assert_eq!(parse(&text).unwrap(), documents);
        insta::assert_snapshot!(text);
        insta::assert_snapshot!(render(&documents, Format::Text).unwrap());
    }

    #[test]
    fn locks_name_one_target() {
        let args = LockArgs {
            user: Some("alice".into()),
            role: None,
            login: None,
            node: None,
            ttl: Some("1h".parse().unwrap()),
            message: "on leave".into(),
        };
        let value = lock_resource(&args, "n", OffsetDateTime::UNIX_EPOCH).unwrap();
        let lock: proto::resource::Lock = serde_json::from_value(value).unwrap();
        assert_eq!(lock.metadata.expires.unwrap().unix_timestamp(), 3600);
        assert_eq!(lock.spec.message, "on leave");
        assert!(matches!(lock.spec.target, proto::resource::LockTarget::User(_)));
    }

    #[test]
    fn kinds_and_names() {
        assert_eq!(split("roles/a/b").unwrap(), ("role", "a/b"));
        assert_eq!(split("user").unwrap(), ("user", ""));
        assert!(split("secret").is_err());
    }
}
