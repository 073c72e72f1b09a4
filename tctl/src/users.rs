//! `tctl users`: invites, lists, roles of people. An invite's token stands on a line of its own, never in a command line
//! that somebody would paste.

use std::collections::HashMap;

use proto::resource::KIND_USER;
use proto::rpc::{
    CreateUserRequest, InviteResponse, PutResourceRequest, ResetUserRequest, TraitValues,
};
use serde_json::{Map, Value, json};

use crate::flags::{UsersAddArgs, UsersCommand, UsersUpdateArgs};
use crate::join_line::proxy_or_blank;
use crate::resources::{delete, fetch, word, words};
use crate::{Admin, call};
use cli::failure::Failure;
use cli::output::{Format, plain, print, rfc3339, structured, table};

/// # Errors
/// Auth's.
pub(crate) async fn run(admin: &mut Admin, command: &UsersCommand) -> Result<(), Failure> {
    match command {
        UsersCommand::Add(args) => {
            let invite = admin.create_user(call(create_request(args))).await?.into_inner();
            print(&show_invite(&invite, args.format)?)
        }
        UsersCommand::Ls { format } => {
            let users = fetch(admin, KIND_USER, "").await?;
            match format {
                Format::Text => print(&list(&users)),
                Format::Json | Format::Yaml => print(&structured(&users, *format)?),
            }
        }
        UsersCommand::Reset(args) => {
            let request = ResetUserRequest {
                user: args.name.clone(),
                invite_ttl_seconds: args.ttl.0.as_secs(),
            };
            let invite = admin.reset_user(call(request)).await?.into_inner();
            print(&show_invite(&invite, args.format)?)
        }
        UsersCommand::Rm { name } => {
            delete(admin, KIND_USER, name).await?;
            print(&format!("user {name:?} has been removed\n"))
        }
        UsersCommand::Update(args) => update(admin, args).await,
    }
}

fn create_request(args: &UsersAddArgs) -> CreateUserRequest {
    let mut traits = HashMap::new();
    if !args.logins.is_empty() {
        traits.insert("logins".to_owned(), TraitValues { values: args.logins.clone() });
    }
    CreateUserRequest {
        user: args.name.clone(),
        roles: args.roles.clone(),
        traits,
        invite_ttl_seconds: args.ttl.0.as_secs(),
    }
}

/// Reads, changes, writes; the revision that was read makes auth refuse if somebody else was faster.
async fn update(admin: &mut Admin, args: &UsersUpdateArgs) -> Result<(), Failure> {
    let mut users = fetch(admin, KIND_USER, &args.name).await?;
    let missing = || Failure::new(format!("user {:?} was not found", args.name));
    let user = users.first_mut().ok_or_else(missing)?;
    let spec = user.pointer_mut("/spec").and_then(Value::as_object_mut).ok_or_else(missing)?;
    change(spec, args);
    let request = PutResourceRequest { resource: serde_json::to_vec(user)?, overwrite: true };
    admin.put_resource(call(request)).await?;
    let changed = [("roles", &args.set_roles), ("logins", &args.set_logins)];
    let changed = changed.iter().filter(|(_, new)| !new.is_empty());
    let said: Vec<_> = changed.map(|(what, new)| format!("the {what} {}", new.join(","))).collect();
    print(&format!("user {:?} has {}\n", args.name, said.join(" and ")))
}

fn change(spec: &mut Map<String, Value>, args: &UsersUpdateArgs) {
    if !args.set_roles.is_empty() {
        spec.insert("roles".to_owned(), json!(args.set_roles));
    }
    if !args.set_logins.is_empty() {
        let traits = spec.entry("traits").or_insert_with(|| json!({}));
        if let Some(traits) = traits.as_object_mut() {
            traits.insert("logins".to_owned(), json!(args.set_logins));
        }
    }
}

fn show_invite(invite: &InviteResponse, format: Format) -> Result<String, Failure> {
    let expires = rfc3339(invite.expires);
    if format != Format::Text {
        let value = json!({
            "user": invite.user,
            "token": invite.token,
            "expires": expires,
            "proxy_address": invite.proxy_address,
            "ca_pin": invite.ca_pin,
        });
        return structured(&value, format);
    }
    let (user, proxy, pin) =
        (plain(&invite.user), proxy_or_blank(&invite.proxy_address), plain(&invite.ca_pin));
    Ok(format!(
        "User {user:?} exists but has no password yet. Let them run, until {expires}:\n\n  \
         tsh invite --proxy={proxy} --ca-pin={pin}\n\n\
         and enter this token, which works once:\n\n  {}\n\n\
         {proxy} must be reachable for them.\n",
        plain(&invite.token)
    ))
}

fn list(users: &[Value]) -> String {
    let row = |user: &Value| {
        let enrolled = user.pointer("/spec/status/enrolled").and_then(Value::as_bool);
        vec![
            word(user, "/metadata/name"),
            words(user, "/spec/roles"),
            words(user, "/spec/traits/logins"),
            if enrolled == Some(true) { "active" } else { "invited" }.to_owned(),
        ]
    };
    table(&["User", "Roles", "Logins", "Status"], &users.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> InviteResponse {
        InviteResponse {
            user: "alice".into(),
            token: "0123abcd".into(),
            expires: 3600,
            proxy_address: "proxy.example.com:3080".into(),
            ca_pin: "sha256:ab".into(),
        }
    }

    #[test]
    fn the_token_is_not_part_of_a_command() {
        let text = show_invite(&invite(), Format::Text).unwrap();
        let with_token: Vec<&str> = text.lines().filter(|l| l.contains("0123abcd")).collect();
        assert_eq!(with_token, ["  0123abcd"]);
        insta::assert_snapshot!(text);
        insta::assert_snapshot!(show_invite(&invite(), Format::Json).unwrap());
    }

    #[test]
    fn what_is_not_named_stays() {
        let check = |before: Value, roles: &[&str], logins: &[&str], after: Value| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let (set_roles, set_logins) = (words(roles), words(logins));
            let mut spec = before.as_object().unwrap().clone();
            change(&mut spec, &UsersUpdateArgs { name: "alice".into(), set_roles, set_logins });
            assert_eq!(Value::Object(spec), after);
        };
        let before = json!({"roles": ["access"], "traits": {"logins": ["root"], "team": ["web"]}});
        check(
            before.clone(),
            &[],
            &["www", "db"],
            json!({"roles": ["access"], "traits": {"logins": ["www", "db"], "team": ["web"]}}),
        );
        check(
            before,
            &["auditor"],
            &[],
            json!({"roles": ["auditor"], "traits": {"logins": ["root"], "team": ["web"]}}),
        );
        check(
            json!({"roles": []}),
            &[],
            &["root"],
            json!({"roles": [], "traits": {"logins": ["root"]}}),
        );
    }

    #[test]
    fn one_line_per_user() {
        let users = [
            json!({"metadata": {"name": "alice"}, "spec": {"roles": ["access", "editor"],
                "traits": {"logins": ["root"]}, "status": {"enrolled": true}}}),
            json!({"metadata": {"name": "bob"}, "spec": {"roles": []}}),
        ];
        insta::assert_snapshot!(list(&users));
    }
}
