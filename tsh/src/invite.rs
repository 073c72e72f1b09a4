//! `tsh invite`: an invited person chooses a password and enrols a second factor, in the terminal. The token never
//! stands on a command line or in the environment.

use std::io::IsTerminal as _;
use std::path::Path;

use proto::rpc::{AcceptInviteRequest, OpenInviteRequest, OpenInviteResponse};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use zeroize::Zeroizing;

use crate::first_contact::{FirstContact, call};
use crate::flags::{Global, InviteArgs};
use crate::home::Home;
use crate::prompt::Prompt;
use cli::failure::{Failure, Fallible as _};
use cli::output::{plain, print};

/// # Errors
/// The proxy does not prove itself, or auth refuses.
pub(crate) async fn run(home: &Home, global: &Global, args: &InviteArgs) -> Result<(), Failure> {
    let proxy = global.proxy.clone().ok_or_else(|| {
        Failure::usage("which proxy?").hint("Pass --proxy and --ca-pin as the invite says.")
    })?;
    let contact = FirstContact::make(home, proxy.clone(), &args.trust).await?;
    let prompt = Prompt::new();
    let token = match &args.token_file {
        Some(file) => token_from(file)?,
        None => Zeroizing::new(prompt.secret("Invite token")?.trim().to_owned()),
    };
    let mut sign_in = contact.sign_in()?;
    let request = OpenInviteRequest { token: token.to_string() };
    let invite = sign_in.open_invite(call(request)).await?.into_inner();
    eprintln!("Invite for {} at {}.", plain(&invite.user), contact.cluster);
    let password = choose_password(&prompt, invite.password_length_min)?;
    let on_terminal = prompt.is_terminal() && std::io::stdout().is_terminal();
    print(&enrolment(&invite, on_terminal))?;
    let code = prompt.code("One-time code")?;
    let request = AcceptInviteRequest {
        token: token.to_string(),
        password: password.to_string(),
        otp: code.to_string(),
    };
    let answer = sign_in.accept_invite(call(request)).await;
    let user = answer.map_err(refused)?.into_inner().user;
    let pin = args.trust.ca_pin.as_ref().map(|pin| format!(" --ca-pin={pin}")).unwrap_or_default();
    print(&format!(
        "{user} is ready. Now run:\n\n  tsh login --proxy={proxy} --user={user}{pin}\n",
        user = plain(&user)
    ))
}

/// Only an invite that was accepted is used up.
fn refused(status: tonic::Status) -> Failure {
    let again = status.code() == tonic::Code::PermissionDenied;
    let failure = Failure::from(status);
    if again && failure.message().contains("one-time code") {
        failure.hint("Run `tsh invite` again: the token is still good.")
    } else {
        failure
    }
}

fn token_from(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = Zeroizing::new(std::fs::read_to_string(file).doing(file.display())?);
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// Asked twice on a terminal, where nobody sees what they type.
fn choose_password(prompt: &Prompt, length_min: u32) -> Result<Zeroizing<String>, Failure> {
    let length_min = usize::try_from(length_min).unwrap_or(usize::MAX);
    for _ in 0..PASSWORD_TRIES {
        let password =
            prompt.secret(&format!("New password (at least {length_min} characters)"))?;
        if password.chars().count() < length_min {
            if !prompt.is_terminal() {
                break;
            }
            eprintln!("Too short.");
        } else if prompt.is_terminal() && *prompt.secret("Again")? != *password {
            eprintln!("The two differ.");
        } else {
            return Ok(password);
        }
    }
    Err(Failure::new(format!("the password needs at least {length_min} characters")))
}

/// What an authenticator needs, as text and, on a terminal, as a code to scan.
fn enrolment(invite: &OpenInviteResponse, terminal: bool) -> String {
    let mut text = String::new();
    if terminal && let Ok(code) = QrCode::new(invite.otpauth_url.as_bytes()) {
        for line in code.render::<Dense1x2>().quiet_zone(true).build().lines() {
            text.push_str(&format!("{BLACK_ON_WHITE}{line}{AS_BEFORE}\n"));
        }
        text.push_str("\nScan this with an authenticator, or enter:\n");
    }
    text.push_str(&format!("TOTP secret: {}\n", plain(&invite.totp_secret)));
    text.push_str(&format!("{}\n", plain(&invite.otpauth_url)));
    text
}

const PASSWORD_TRIES: u32 = 3;
/// Many scanners do not read light on dark, and a terminal's own colours may be either. These two of the 256 are in no theme.
const BLACK_ON_WHITE: &str = "\x1b[38;5;16;48;5;231m";
const AS_BEFORE: &str = "\x1b[0m";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_code_leaves_the_token_good() {
        let code = tonic::Status::permission_denied("the one-time code is not right");
        assert!(refused(code).text().contains("Run `tsh invite` again"));
        let gone = tonic::Status::permission_denied("the invite is not valid");
        assert!(!refused(gone).text().contains("again"));
    }

    #[test]
    fn the_secret_is_on_a_line_of_its_own() {
        let invite = OpenInviteResponse {
            user: "alice".into(),
            totp_secret: "JBSWY3DPEHPK3PXP".into(),
            otpauth_url: "otpauth://totp/demo:alice?secret=JBSWY3DPEHPK3PXP".into(),
            password_length_min: 12,
        };
        let piped = enrolment(&invite, false);
        assert_eq!(piped.lines().next(), Some("TOTP secret: JBSWY3DPEHPK3PXP"));
        assert_eq!(piped.lines().count(), 2);
        let shown = enrolment(&invite, true);
        assert!(shown.contains('█') && shown.ends_with(&piped));
        let scanned: Vec<&str> = shown.lines().filter(|line| line.contains('\x1b')).collect();
        assert!(!scanned.is_empty());
        for line in scanned {
            assert!(line.starts_with(BLACK_ON_WHITE) && line.ends_with(AS_BEFORE), "{line:?}");
        }
    }
}
